// Objects of a cloud, found by distance alone: what hangs together once floor and walls are taken away. Pure functions of numbers.

const LINK = 3.8; // points nearer than so many usual distances of neighbours hang together
const PLANE = 0.01; // most half thickness of a floor, as a share of the cloud's radius
const SPREAD = 6; // a floor is so many of its points' usual distances from it thick, if that is less
const FLOOR_SHARE = 0.05; // fewer of the points on the lowest plane are no floor
const LEAST = 12; // points of an object
const PART = 0.3; // least share of the points of two objects that nearly touch,
const WHOLE = 0.95; // and of all such parts together
const FOOT = 0.03; // height in which points of an object are looked for beside a point of the floor, as a share of the radius
const RIM = 0.009; // how near, seen from above, a point of the floor has to be to such a one to be the object's
const BAND = 0.2; // height over the floor, as a share of the radius, in which a side is followed down to it,
const MIDDLE = 0.25; // by the edge at this share of that height,
const GAIN = 0.6; // by this share of what the edge promises: it lies on the outermost points, so it promises too much,
const FARTHEST = 0.02; // and at most so far, as a share of the radius

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

/** A function of (point, visit) that visits the members within `reach` of a point. */
function neighbours(points, members, reach) {
  // Cells as wide as the reach: a point's partners are in its own cell and the 26 around it.
  const low = bounds(points, members), cells = new Map();
  const cell = (i, k) => Math.floor((points[3 * i + k] - low[k]) / reach), key = (x, y, z) => (x * 4194304 + y) * 4096 + z;
  for (const i of members) {
    const at = key(cell(i, 0), cell(i, 1), cell(i, 2)), there = cells.get(at);
    if (there) there.push(i); else cells.set(at, [i]);
  }
  return (i, visit) => {
    const [x, y, z] = [cell(i, 0), cell(i, 1), cell(i, 2)];
    for (let dx = -1; dx < 2; dx++) for (let dy = -1; dy < 2; dy++) for (let dz = -1; dz < 2; dz++)
      for (const j of cells.get(key(x + dx, y + dy, z + dz)) || []) {
        const a = points[3 * i] - points[3 * j], b = points[3 * i + 1] - points[3 * j + 1], c = points[3 * i + 2] - points[3 * j + 2];
        if (a * a + b * b + c * c <= reach * reach) visit(j);
      }
  };
}

/** Grows groups of points by steps of at most `reach` among the members; `of` tells each point's group, -1 of none yet. */
function grow(groups, of, near) {
  const queue = groups.flat();
  for (let q = 0; q < queue.length; q++) near(queue[q], (j) => {
    if (of[j] >= 0) return;
    of[j] = of[queue[q]];
    groups[of[j]].push(j);
    queue.push(j);
  });
}

/** The members that hang together by steps of at most `reach`, as groups of points. */
function linked(points, members, reach) {
  const near = neighbours(points, members, reach), of = new Int32Array(points.length / 3).fill(-1), groups = [];
  for (const first of members) {
    if (of[first] >= 0) continue;
    of[first] = 0;
    const group = [first];
    grow([group], of, near);
    groups.push(group);
  }
  return groups;
}

/** A group, or its parts where somewhat shorter steps leave large ones and hardly anything else: objects that nearly touch. */
function parts(points, group, link) {
  let found = [];
  for (let short = 0.95; short > 0.65 && found.length < 2; short -= 0.05) {
    found = linked(points, group, short * link).filter((part) => part.length >= PART * group.length);
    if (found.reduce((sum, part) => sum + part.length, 0) < WHOLE * group.length) return [group];
  }
  if (found.length < 2) return [group];
  const of = new Int32Array(points.length / 3).fill(-1);
  found.forEach((part, p) => { for (const i of part) of[i] = p; });
  grow(found, of, neighbours(points, group, link)); // the rest goes to the part that reaches it first
  return found;
}

/** How far out on the floor the points [height over it, outward] of one side lead: an edge of their hull, followed down to height 0. */
function outOnFloor(pairs, height) {
  pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const hull = [];
  for (const p of pairs) {
    while (hull.length > 1) {
      const [a, b] = hull.slice(-2);
      if ((b[0] - a[0]) * (p[1] - a[1]) < (b[1] - a[1]) * (p[0] - a[0])) break;
      hull.pop();
    }
    hull.push(p);
  }
  const above = hull.findIndex((p) => p[0] > height);
  if (above < 1) return -Infinity;
  const a = hull[above - 1], b = hull[above];
  return a[1] - a[0] * (b[1] - a[1]) / (b[0] - a[0]);
}

/** Moves the sides of a box that stands on the floor out to where its object, wider at its foot than its lowest points, meets the floor. */
function widenFoot(box, points, group, up, floor, radius) {
  const near = group.filter((i) => points[3 * i + up] - floor < BAND * radius);
  for (let k = 0; k < 6; k++) {
    const axis = k % 3, sign = k < 3 ? -1 : 1, out = sign * box[k];
    if (axis === up) continue;
    const reach = outOnFloor(near.map((i) => [points[3 * i + up] - floor, sign * points[3 * i + axis]]), MIDDLE * BAND * radius);
    box[k] += sign * GAIN * Math.min(Math.max(reach - out, 0), FARTHEST * radius);
  }
}

/** {of: the object of each point or -1, boxes: of each object, largest first}. `up`: 1 where y points up, 2 where z does. */
export function objects(points, up) {
  const n = points.length / 3, all = bounds(points), of = new Int32Array(n).fill(-1);
  const radius = Math.hypot(all[3] - all[0], all[4] - all[1], all[5] - all[2]) / 2, link = n < LEAST ? 0 : LINK * spacing(points);
  if (!(link > 0)) return { of, boxes: [] };
  const height = (i) => points[3 * i + up], most = PLANE * radius, low = [], kept = [], flat = [];
  for (let i = 0; i < n; i++) if (height(i) < all[up] + 2 * most) low.push(height(i));
  const floor = low.length >= FLOOR_SHARE * n ? median(low) : null;
  const thick = floor === null ? 0 : Math.min(most, SPREAD * median(low.map((h) => Math.abs(h - floor))));
  const atWall = (i) => [0, 1, 2].some((k) => k !== up && Math.min(points[3 * i + k] - all[k], all[k + 3] - points[3 * i + k]) < 1.5 * most);
  for (let i = 0; i < n; i++) {
    if (floor === null) kept.push(i);
    else if (!atWall(i)) (Math.abs(height(i) - floor) < thick ? flat : kept).push(i);
  }
  const groups = linked(points, kept, link).flatMap((group) => parts(points, group, link)).filter((group) => group.length >= LEAST);
  groups.sort((a, b) => b.length - a.length);
  groups.forEach((group, g) => { for (const i of group) of[i] = g; });
  // What stands on the floor is often widest there, and those points went with the floor's: the nearest of them come back.
  const feet = kept.filter((i) => of[i] >= 0 && height(i) < floor + FOOT * radius);
  const near = neighbours(points.map((v, k) => (k % 3 === up ? 0 : v)), feet, RIM * radius);
  for (const i of flat) near(i, (j) => { of[i] = of[j]; });
  for (const i of flat) if (of[i] >= 0) groups[of[i]].push(i);
  const boxes = groups.map((group) => {
    const box = bounds(points, group);
    if (floor !== null && box[up] < floor + 2 * most + link) { // it stands on the floor
      box[up] = floor - most / 2;
      widenFoot(box, points, group, up, floor, radius);
    }
    return box;
  });
  return { of, boxes };
}
