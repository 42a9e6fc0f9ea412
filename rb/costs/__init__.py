"""What a step costs, from shapes alone: models and batches without numbers, needed and executed FLOPs, launches, bytes, memory."""
