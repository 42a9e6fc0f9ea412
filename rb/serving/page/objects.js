// Objects of a cloud, found by distance alone: what hangs together once floor and walls are taken away. Pure functions of numbers.

const LINK = 3.5; // points nearer than so many usual distances of neighbours hang together
const PLANE = 0.01; // half the thickness of a floor, as a share of the cloud's radius
const FLOOR_SHARE = 0.05; // fewer of the points on the lowest plane are no floor
const LEAST = 12; // points of an object

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

/** Bounds [min x, y, z, max x, y, z] of the points whose numbers are given, or of all. */
export function bounds(points, members = null) {
  const box = [Infinity, Infinity, Infinity, -Infinity, -Infinity, -Infinity];
  const count = members ? members.length : points.length / 3;
  for (let j = 0; j < count; j++) {
    const i = 3 * (members ? members[j] : j);
    for (let k = 0; k < 3; k++) {
      if (points[i + k] < box[k]) box[k] = points[i + k];
      if (points[i + k] > box[k + 3]) box[k + 3] = points[i + k];
    }
  }
  return box;
}

/** The usual distance of a point to its nearest neighbour, from 400 of them. */
function spacing(points) {
  const n = points.length / 3, step = Math.max(1, Math.floor(n / 400)), found = [];
  for (let i = 0; i < n; i += step) {
    let least = Infinity;
    for (let j = 0; j < n; j++) {
      const x = points[3 * i] - points[3 * j], y = points[3 * i + 1] - points[3 * j + 1], z = points[3 * i + 2] - points[3 * j + 2];
      const d = x * x + y * y + z * z;
      if (d < least && j !== i) least = d;
    }
    found.push(Math.sqrt(least));
  }
  return median(found);
}

/** {of: the object of each point or -1, boxes: of each object, largest first}. `up`: 1 where y points up, 2 where z does. */
export function objects(points, up) {
  const n = points.length / 3, all = bounds(points), none = { of: new Int32Array(n).fill(-1), boxes: [] };
  if (n < LEAST) return none;
  const radius = Math.hypot(all[3] - all[0], all[4] - all[1], all[5] - all[2]) / 2, thick = PLANE * radius, link = LINK * spacing(points);
  if (!(link > 0)) return none;
  const low = [];
  for (let i = 0; i < n; i++) if (points[3 * i + up] < all[up] + 2 * thick) low.push(points[3 * i + up]);
  const floor = low.length >= FLOOR_SHARE * n ? median(low) : null;
  const kept = [];
  for (let i = 0; i < n; i++) {
    let plane = floor !== null && Math.abs(points[3 * i + up] - floor) < thick;
    for (let k = 0; floor !== null && k < 3; k++)
      if (k !== up) plane ||= Math.min(points[3 * i + k] - all[k], all[k + 3] - points[3 * i + k]) < 1.5 * thick;
    if (!plane) kept.push(i);
  }
  // Cells as wide as the longest link: a point's partners are in its own cell and the 26 around it.
  const cells = new Map(), cell = (i, k) => Math.floor((points[3 * i + k] - all[k]) / link), key = (x, y, z) => (x * 4194304 + y) * 4096 + z;
  for (const i of kept) {
    const at = key(cell(i, 0), cell(i, 1), cell(i, 2)), there = cells.get(at);
    if (there) there.push(i); else cells.set(at, [i]);
  }
  const of = none.of, groups = [];
  for (const first of kept) {
    if (of[first] >= 0) continue;
    const group = [first];
    of[first] = groups.length;
    for (let g = 0; g < group.length; g++) {
      const i = group[g], [x, y, z] = [cell(i, 0), cell(i, 1), cell(i, 2)];
      for (let dx = -1; dx < 2; dx++) for (let dy = -1; dy < 2; dy++) for (let dz = -1; dz < 2; dz++)
        for (const j of cells.get(key(x + dx, y + dy, z + dz)) || []) {
          if (of[j] >= 0) continue;
          const a = points[3 * i] - points[3 * j], b = points[3 * i + 1] - points[3 * j + 1], c = points[3 * i + 2] - points[3 * j + 2];
          if (a * a + b * b + c * c <= link * link) { of[j] = groups.length; group.push(j); }
        }
    }
    groups.push(group);
  }
  const order = groups.map((_, g) => g).filter((g) => groups[g].length >= LEAST).sort((a, b) => groups[b].length - groups[a].length);
  const place = new Int32Array(groups.length).fill(-1);
  order.forEach((g, rank) => { place[g] = rank; });
  for (const i of kept) of[i] = place[of[i]];
  const boxes = order.map((g) => {
    const box = bounds(points, groups[g]);
    if (floor !== null && box[up] < floor + 2 * thick + link) box[up] = floor - thick / 2; // it stands on the floor, whose points were taken away
    return box;
  });
  return { of, boxes };
}
