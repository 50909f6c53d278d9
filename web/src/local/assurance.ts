// What the model knows of its own limits: confidence, odd images, odd masks. As the library's `runtime`.

import type { Caution } from "../types";
import { area } from "../masks";
import type { FrameMap } from "./geometry";

interface Packed {
  shape: number[];
  float16: string;
}

export interface Assurance {
  confidence?: { predicted?: number[]; expected?: number[]; cases?: number };
  input_check?: Record<"mean" | "scale" | "weights" | "bias" | "axes" | "variances", Packed> & {
    noise: number;
    certainty: number;
    distance: number;
  };
  plausibility?: Record<"least_area" | "most_area" | "least_balance" | "least_agreement" | "least_confidence", number>;
}

const CLASSES: [string, string][] = [
  ["", ""],
  ["rotated", "looks rotated by 90 degrees to the left"],
  ["rotated", "looks upside down"],
  ["rotated", "looks rotated by 90 degrees to the right"],
  ["inverted", "looks inverted (black bones); give it with white bones"],
  ["not_a_chest", "does not look like a whole, upright frontal chest radiograph"],
];
const NEAR = 1.5;

function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function unpacked({ float16 }: Packed): Float64Array {
  const text = atob(float16);
  return Float64Array.from({ length: text.length / 2 }, (_, i) => half(text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8)));
}

/** Whether the file's confidence is a table that this page knows how to read. */
export function isCalibrated(given: Assurance): boolean {
  return Array.isArray(given.confidence?.predicted) && Array.isArray(given.confidence?.expected);
}

/** From a predicted IoU to the expected one: linear between knots, level outside them. */
export function expectedIou(given: Assurance, predicted: number): number {
  const x = given.confidence?.predicted;
  const y = given.confidence?.expected;
  if (!x || !y) return Math.min(1, Math.max(0, predicted));
  if (predicted <= x[0]) return y[0];
  for (let i = 1; i < x.length; i++) {
    if (predicted <= x[i]) return y[i - 1] + ((y[i] - y[i - 1]) * (predicted - x[i - 1])) / (x[i] - x[i - 1]);
  }
  return y[y.length - 1];
}

/** Return what is odd about an image, given its embeddings (E², D). */
export function lookAtImage(given: Assurance, embeddings: Float32Array, width: number, map: FrameMap): Caution[] {
  const check = given.input_check;
  if (!check?.mean?.float16) return [];
  const [mean, scale, weights, bias, axes, variances] = (["mean", "scale", "weights", "bias", "axes", "variances"] as const).map((name) => unpacked(check[name]));
  const features = pooled(embeddings, width, map).map((value, i) => (value - mean[i]) / scale[i]);
  const F = features.length;
  const dot = (matrix: Float64Array, row: number): number => features.reduce((sum, value, i) => sum + matrix[row * F + i] * value, 0);
  const logits = [...bias].map((value, c) => value + dot(weights, c));
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - most));
  const total = powers.reduce((a, b) => a + b, 0);
  const along = Array.from(variances, (_, k) => dot(axes, k));
  const across = features.reduce((sum, value) => sum + value * value, 0) - along.reduce((sum, value) => sum + value * value, 0);
  const square = along.reduce((sum, value, k) => sum + value ** 2 / variances[k], 0) + across / check.noise;
  const distance = Math.sqrt(Math.max(square, 0) / F);
  const odd = 1 - powers[0] / total;
  if (odd >= check.certainty) {
    let index = 1;
    for (let c = 2; c < powers.length; c++) if (powers[c] > powers[index]) index = c;
    const [code, message] = CLASSES[distance <= NEAR * check.distance ? index : CLASSES.length - 1];
    return [{ code, message, value: odd, limit: check.certainty }];
  }
  if (distance > check.distance) {
    return [{ code: "unlike_training_data", message: "is unlike the radiographs that the model was trained on", value: distance, limit: check.distance }];
  }
  return [];
}

/** The means of embeddings over the quarters of the image proper. */
function pooled(embeddings: Float32Array, width: number, map: FrameMap): Float64Array {
  const side = Math.round(Math.sqrt(embeddings.length / width));
  const [h, w] = map.valid.map((length) => Math.max(2, Math.round((length * side) / map.side)));
  const halves = (n: number): [number, number][] => [
    [0, Math.floor(n / 2)],
    [Math.floor(n / 2), n],
  ];
  const out = new Float64Array(4 * width);
  let quarter = 0;
  for (const [y0, y1] of halves(h)) {
    for (const [x0, x1] of halves(w)) {
      const count = (y1 - y0) * (x1 - x0);
      for (let y = y0; y < y1; y++) {
        for (let x = x0; x < x1; x++) {
          const start = (y * side + x) * width;
          for (let d = 0; d < width; d++) out[quarter * width + d] += embeddings[start + d] / count;
        }
      }
      quarter++;
    }
  }
  return out;
}

/** Return what is odd about a mask, and about its first pass if there was one. */
export function lookAtMask(given: Assurance, mask: Uint8Array, width: number, confidence: number, first: Uint8Array | null): Caution[] {
  const limits = given.plausibility;
  if (limits?.least_area === undefined) return [];
  if (!first) {
    return confidence < limits.least_confidence
      ? [{ code: "low_confidence", message: "the model is not sure of a mask", value: confidence, limit: limits.least_confidence }]
      : [];
  }
  const share = area(mask) / mask.length;
  const implausible = (message: string, value: number, limit: number): Caution => ({ code: "implausible_mask", message, value, limit });
  if (share < limits.least_area) return [implausible("the mask is very small", share, limits.least_area)];
  const found: Caution[] = [];
  if (share > limits.most_area) found.push(implausible("the mask is very large", share, limits.most_area));
  const even = balance(mask, width);
  if (even < limits.least_balance) found.push(implausible("one side of the mask is much smaller than the other", even, limits.least_balance));
  let both = 0;
  let either = 0;
  for (let i = 0; i < mask.length; i++) {
    both += mask[i] & first[i];
    either += mask[i] | first[i];
  }
  const same = either ? both / either : 1;
  if (same < limits.least_agreement) found.push({ code: "unsteady_mask", message: "the mask changes much with the box", value: same, limit: limits.least_agreement });
  if (confidence < limits.least_confidence) found.push({ code: "low_confidence", message: "the model is not sure of the mask", value: confidence, limit: limits.least_confidence });
  return found;
}

function balance(mask: Uint8Array, width: number): number {
  const columns = new Float64Array(width);
  for (let i = 0; i < mask.length; i++) columns[i % width] += mask[i];
  const filled = [...columns.keys()].filter((x) => columns[x] > 0);
  if (!filled.length) return 0;
  const middle = Math.floor((filled[0] + filled[filled.length - 1] + 1) / 2);
  const left = columns.slice(0, middle).reduce((a, b) => a + b, 0);
  const right = columns.slice(middle).reduce((a, b) => a + b, 0);
  return Math.min(left, right) / Math.max(left, right);
}

export function lookAtSpacing(masks: Uint8Array[], width: number, column: number, whole: boolean): Caution[] {
  let [first, last] = [Infinity, -1];
  for (const mask of masks) {
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      first = Math.min(first, i % width);
      last = Math.max(last, i % width);
    }
  }
  const wide = last < 0 ? 0 : ((last + 1 - first) * column) / 10;
  if (wide === 0 || (wide <= 50 && (wide >= 8 || !whole))) return [];
  const message = `the size of a pixel makes the lungs ${Number(wide.toPrecision(3))} cm wide: no areas in mm²`;
  return [{ code: "spacing_implausible", message, value: wide, limit: wide < 8 ? 8 : 50 }];
}
