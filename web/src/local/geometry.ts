// From an image's own pixels to the model's frame and back, as the library's `imaging.geometry` does it.

export interface Image {
  width: number;
  height: number;
  /** Row by row; bytes, or 16 bits stretched over their whole range. */
  grey: Uint8Array | Uint16Array;
  spacing: [number, number] | null;
}

export class FrameMap {
  constructor(
    readonly height: number,
    readonly width: number,
    readonly side: number,
  ) {}

  get valid(): [number, number] {
    const scale = this.side / Math.max(this.height, this.width);
    return [this.height, this.width].map((n) => Math.max(1, Math.floor(n * scale + 0.5))) as [number, number];
  }

  get scale(): [number, number] {
    const [h, w] = this.valid;
    return [w / this.width, h / this.height];
  }
}

interface Weights {
  starts: Int32Array;
  values: Float64Array[];
}

/** Pillow's bilinear filter: a triangle, widened where the picture shrinks. */
function weights(size: number, from: number, to: number): Weights {
  const scale = (to - from) / size;
  const support = Math.max(1, scale);
  const starts = new Int32Array(size);
  const values: Float64Array[] = [];
  const limit = Math.ceil(to - 1e-9);
  for (let i = 0; i < size; i++) {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(Math.max(limit, Math.trunc(to)), Math.trunc(centre + support + 0.5));
    const row = new Float64Array(Math.max(1, last - first));
    let sum = 0;
    for (let j = 0; j < row.length; j++) {
      row[j] = Math.max(0, 1 - Math.abs((j + first - centre + 0.5) / support));
      sum += row[j];
    }
    if (sum) for (let j = 0; j < row.length; j++) row[j] /= sum;
    starts[i] = first;
    values.push(row);
  }
  return { starts, values };
}

type Reals = Uint8Array | Uint16Array | Float32Array;

/** Resize one channel, columns first; `round` is what is kept between and after the passes. */
function resized(
  source: Reals,
  [height, width]: [number, number],
  [h, w]: [number, number],
  box: [number, number],
  round: (value: number) => number,
): Float32Array {
  const across = weights(w, 0, box[1]);
  const down = weights(h, 0, box[0]);
  const narrow = new Float32Array(height * w);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < w; x++) {
      const row = across.values[x];
      const start = y * width + across.starts[x];
      let sum = 0;
      for (let j = 0; j < row.length; j++) sum += source[start + j] * row[j];
      narrow[y * w + x] = round(sum);
    }
  }
  const out = new Float32Array(h * w);
  for (let y = 0; y < h; y++) {
    const column = down.values[y];
    const start = down.starts[y] * w;
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let j = 0; j < column.length; j++) sum += narrow[start + j * w + x] * column[j];
      out[y * w + x] = round(sum);
    }
  }
  return out;
}

const asByte = (value: number): number => Math.min(255, Math.max(0, Math.floor(value + 0.5)));

/** Return the model's input (3, S, S) and the way back. */
export function toModel(image: Image, side: number, normalize: string): { pixels: Float32Array; map: FrameMap } {
  const map = new FrameMap(image.height, image.width, side);
  const [h, w] = map.valid;
  const deep = image.grey instanceof Uint16Array;
  const plain = resized(image.grey, [image.height, image.width], [h, w], [image.height, image.width], deep ? Math.fround : asByte);
  if (deep) for (let i = 0; i < plain.length; i++) plain[i] = Math.min(65535, Math.max(0, Math.trunc(plain[i] + 0.5)));
  let low = Infinity;
  let high = -Infinity;
  for (const value of plain) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === high) throw new Error("the image is of one colour; give a radiograph");
  const means = [0.485, 0.456, 0.406];
  const deviations = [0.229, 0.224, 0.225];
  const pixels = new Float32Array(3 * side * side);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const value = plain[y * w + x];
        pixels[(c * side + y) * side + x] =
          normalize === "imagenet"
            ? (value / (deep ? 65535 : 255) - means[c]) / deviations[c]
            : Math.fround(value - low) / Math.fround(high - low);
      }
    }
  }
  return { pixels, map };
}

/** Bring logits (L, L) back to the original and cut them at the threshold. */
export function toMask(logits: Float32Array, low: number, map: FrameMap, threshold: number): Uint8Array {
  const box = map.valid.map((n) => (n * low) / map.side) as [number, number];
  const [rows, columns] = box.map((n) => Math.ceil(n - 1e-9));
  const cropped = new Float32Array(rows * columns);
  for (let y = 0; y < rows; y++) cropped.set(logits.subarray(y * low, y * low + columns), y * columns);
  const values = resized(cropped, [rows, columns], [map.height, map.width], box, Math.fround);
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < mask.length; i++) mask[i] = values[i] > threshold ? 1 : 0;
  return mask;
}

/** The box of a first mask on the model's own grid, in pixels of the original; null if it is empty. */
export function automaticBox(mask: Uint8Array, map: FrameMap, low: number): number[] | null {
  const grid = new FrameMap(map.height, map.width, low);
  const [h, w] = grid.valid;
  const small = new Uint8Array(h * w);
  for (let y = 0; y < h; y++) {
    const row = Math.floor(((y + 0.5) * map.height) / h);
    for (let x = 0; x < w; x++) small[y * w + x] = mask[row * map.width + Math.floor(((x + 0.5) * map.width) / w)];
  }
  const kept = largest(small, h, w, 2);
  let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
  for (let i = 0; i < kept.length; i++) {
    if (!kept[i]) continue;
    x0 = Math.min(x0, i % w);
    x1 = Math.max(x1, (i % w) + 1);
    y0 = Math.min(y0, Math.floor(i / w));
    y1 = Math.max(y1, Math.floor(i / w) + 1);
  }
  if (x1 < 0) return null;
  const [sx, sy] = grid.scale;
  const rounded = (value: number, most: number): number => Math.min(most, Math.max(0, Math.round(value * 1e6) / 1e6));
  return [rounded(x0 / sx, map.width), rounded(y0 / sy, map.height), rounded(x1 / sx, map.width), rounded(y1 / sy, map.height)];
}

/** Keep the largest 8-connected components. */
function largest(mask: Uint8Array, h: number, w: number, count: number): Uint8Array {
  const labels = new Int32Array(h * w);
  const areas: number[] = [0];
  const stack: number[] = [];
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i] || labels[i]) continue;
    const label = areas.length;
    areas.push(0);
    labels[i] = label;
    stack.push(i);
    for (let at = stack.pop(); at !== undefined; at = stack.pop()) {
      areas[label]++;
      const x = at % w;
      const y = (at - x) / w;
      for (let v = Math.max(0, y - 1); v <= Math.min(h - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(w - 1, x + 1); u++) {
          const next = v * w + u;
          if (mask[next] && !labels[next]) {
            labels[next] = label;
            stack.push(next);
          }
        }
      }
    }
  }
  const kept = new Set(
    areas
      .map((area, label) => ({ area, label }))
      .slice(1)
      .sort((a, b) => b.area - a.area || a.label - b.label)
      .slice(0, count)
      .map((one) => one.label),
  );
  return mask.map((_, i) => (kept.has(labels[i]) ? 1 : 0));
}
