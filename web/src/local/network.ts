// The model in WebAssembly: encoder once, decoder for each prompt; and the check that both compute what they should.

import * as ort from "onnxruntime-web/wasm";
import { area, fromRuns } from "../masks";
import type { Answer, Caution, Facts, Mask, Prompt } from "../types";
import type { Assurance } from "./assurance";
import { expectedIou, isCalibrated, lookAtImage, lookAtMask, lookAtSpacing } from "./assurance";
import type { Image } from "./geometry";
import { FrameMap, automaticBox, toMask, toModel } from "./geometry";

/** What `adalora-qat web` writes of a model beside its two halves. */
export interface Described {
  name: string;
  file: string;
  sha256: string;
  variant: string;
  policy: string;
  version: string;
  side: number;
  normalize: string;
  low: number;
  threshold: number;
  structures: string[];
  points: boolean;
  learned: boolean;
  automatic: boolean;
  assurance: Assurance;
  golden: { image: { width: number; height: number; grey: string }; box: number[]; masks: Runs[]; boxed: Runs; least: number };
}

interface Runs {
  size: [number, number];
  counts: number[];
}

export interface Encoded {
  image: Image;
  map: FrameMap;
  embeddings: ort.Tensor;
  flat: Float32Array;
}

interface Predicted {
  masks: Uint8Array[];
  scores: number[];
  boxes: number[][];
}

const [OUTSIDE, TOP_LEFT, BOTTOM_RIGHT, NO_POINT] = [0, 2, 3, -1];

export class Network {
  private constructor(
    readonly about: Described,
    private readonly encoder: ort.InferenceSession,
    private readonly decoder: ort.InferenceSession,
  ) {}

  static async load(about: Described, wasm: Uint8Array, encoder: Uint8Array, decoder: Uint8Array): Promise<Network> {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm;
    ort.env.logLevel = "error";
    const options = { executionProviders: ["wasm"], enableMemPattern: false } as const;
    const first = await ort.InferenceSession.create(encoder, options);
    return new Network(about, first, await ort.InferenceSession.create(decoder, options));
  }

  /** Hold a known case against what the library computes for it; throws where they differ. */
  async check(): Promise<number> {
    const { image, box, masks, boxed, least } = this.about.golden;
    const grey = Uint8Array.from(atob(image.grey), (c) => c.charCodeAt(0));
    const encoded = await this.encode({ width: image.width, height: image.height, grey, spacing: null });
    const found = [...(await this.automatic(encoded)).predicted.masks, ...(await this.boxes(encoded, [box])).masks];
    const wanted = [...masks, boxed].map(fromRuns);
    const same = found.length === wanted.length ? Math.min(...wanted.map((mask, i) => dice(mask, found[i]))) : 0;
    if (!(same >= least)) {
      throw new Error(`the model computes something else here than where it was made (Dice ${same.toFixed(4)} of a known case, at least ${least} is rounding): nothing is shown`);
    }
    return same;
  }

  async encode(image: Image): Promise<Encoded> {
    const { side, normalize } = this.about;
    const { pixels, map } = toModel(image, side, normalize);
    const feeds = { image: new ort.Tensor("float32", pixels, [1, 3, side, side]) };
    const { embeddings } = await this.encoder.run(feeds);
    return { image, map, embeddings, flat: embeddings.data as Float32Array };
  }

  async answer(encoded: Encoded, name: string, prompt: Prompt): Promise<Answer> {
    const started = performance.now();
    const kind = prompt.points ? "points" : prompt.boxes ? "box" : "automatic";
    let predicted: Predicted;
    let first: Uint8Array | null = null;
    if (prompt.points) predicted = await this.points(encoded, prompt);
    else if (prompt.boxes) predicted = await this.boxes(encoded, prompt.boxes);
    else ({ predicted, first } = await this.automatic(encoded));
    const structures = this.structures(predicted.masks.length, kind);
    const facts = this.facts(encoded, name, predicted, kind, first, structures);
    facts.seconds = { predict: (performance.now() - started) / 1000 };
    const masks: Mask[] = predicted.masks.map((data, i) => ({ structure: structures[i] ?? null, data }));
    return { facts, masks };
  }

  private structures(count: number, kind: string): string[] {
    const { structures, learned } = this.about;
    if (kind === "automatic" && learned) return structures;
    return structures.length === 1 ? Array(count).fill(structures[0]) : [];
  }

  private async automatic(encoded: Encoded): Promise<{ predicted: Predicted; first: Uint8Array | null }> {
    const whole = [0, 0, encoded.map.width, encoded.map.height];
    if (this.about.learned) {
      const count = this.about.structures.length;
      const boxes = Array<number[]>(count).fill(whole);
      return { predicted: await this.boxes(encoded, boxes, [...boxes.keys()]), first: null };
    }
    const first = await this.boxes(encoded, [whole]);
    const box = automaticBox(first.masks[0], encoded.map, this.about.low);
    return { predicted: box ? await this.boxes(encoded, [box]) : first, first: first.masks[0] };
  }

  private async boxes(encoded: Encoded, boxes: number[][], structures?: number[]): Promise<Predicted> {
    const { width, height } = encoded.map;
    for (const [x0, y0, x1, y1] of boxes) {
      if (!(x0 < x1 && y0 < y1 && x0 >= 0 && y0 >= 0 && x1 <= width && y1 <= height)) throw new Error("the box is empty or reaches outside the image");
    }
    const points = boxes.flat();
    const labels = boxes.flatMap(() => [TOP_LEFT, BOTTOM_RIGHT]);
    return this.decode(encoded, points, labels, boxes, structures);
  }

  private async points(encoded: Encoded, prompt: Prompt): Promise<Predicted> {
    if (!this.about.points) throw new Error("this model takes boxes, no points");
    const given = prompt.points ?? [];
    const labels = (prompt.labels ?? given.map(() => 1)).map((one) => (one === 1 ? 1 : OUTSIDE));
    const box = prompt.boxes?.[0];
    const points = [...given.flat(), ...(box ?? [0, 0])];
    const kinds = [...labels, ...(box ? [TOP_LEFT, BOTTOM_RIGHT] : [NO_POINT])];
    return this.decode(encoded, points, kinds, [box ?? [0, 0, encoded.map.width, encoded.map.height]]);
  }

  private async decode(encoded: Encoded, points: number[], labels: number[], boxes: number[][], structures?: number[]): Promise<Predicted> {
    const { low, threshold, assurance } = this.about;
    const [sx, sy] = encoded.map.scale;
    const count = boxes.length;
    const each = labels.length / count;
    const scaled = Float32Array.from(points, (value, i) => value * (i % 2 ? sy : sx));
    const integers = (values: number[]): BigInt64Array => BigInt64Array.from(values, BigInt);
    const feeds: Record<string, ort.Tensor> = {
      embeddings: encoded.embeddings,
      points: new ort.Tensor("float32", scaled, [1, count, each, 2]),
      labels: new ort.Tensor("int64", integers(labels), [1, count, each]),
    };
    if (this.decoder.inputNames.includes("structures")) {
      feeds.structures = new ort.Tensor("int64", integers(structures ?? Array(count).fill(-1)), [1, count]);
    }
    const found = await this.decoder.run(feeds);
    const logits = found.logits.data as Float32Array;
    const masks = boxes.map((_, n) => toMask(logits.subarray(n * low * low, (n + 1) * low * low), low, encoded.map, threshold));
    const scores = [...(found.iou.data as Float32Array)].map((iou) => expectedIou(assurance, iou));
    return { masks, scores, boxes };
  }

  private facts(encoded: Encoded, name: string, { masks, scores, boxes }: Predicted, kind: Facts["prompt"], first: Uint8Array | null, structures: string[]): Facts {
    const { about } = this;
    const { spacing } = encoded.image;
    const { width, height } = encoded.map;
    const width_ = encoded.embeddings.dims[encoded.embeddings.dims.length - 1];
    const mean = scores.reduce((a, b) => a + b, 0) / scores.length;
    const score = kind === "automatic" && first ? scores[0] : Math.min(...scores);
    const warnings: Caution[] = [
      ...lookAtImage(about.assurance, encoded.flat, width_, encoded.map),
      ...lookAtMask(about.assurance, masks[0], width, score, kind === "automatic" ? first : null),
    ];
    if (kind === "automatic" && !about.automatic) warnings.push({ code: "no_box_training", message: "the model was never trained without a box; give one", value: 0, limit: 0 });
    const lungs = about.structures.includes("lung") || about.assurance.plausibility !== undefined;
    const doubted = lungs && spacing ? lookAtSpacing(masks, width, spacing[1], kind === "automatic") : [];
    warnings.push(...doubted);
    const areas = (mask: Uint8Array): { area_px: number; area_mm2: number | null } => {
      const area_px = area(mask);
      return { area_px, area_mm2: spacing && !doubted.length ? Math.round(area_px * spacing[0] * spacing[1] * 1000) / 1000 : null };
    };
    const union = masks[0].slice();
    for (const mask of masks.slice(1)) for (let i = 0; i < union.length; i++) union[i] |= mask[i];
    const edge = (place: number, pick: (...values: number[]) => number): number => pick(...boxes.map((box) => box[place]));
    const calibrated = isCalibrated(about.assurance);
    return {
      image: name,
      width,
      height,
      box: [edge(0, Math.min), edge(1, Math.min), edge(2, Math.max), edge(3, Math.max)],
      score: Math.round(mean * 1e5) / 1e5,
      ...areas(union),
      objects: masks.map((mask, i) => ({ box: boxes[i], score: Math.round(scores[i] * 1e5) / 1e5, ...areas(mask), ...(structures[i] ? { structure: structures[i] } : {}) })),
      confidence: calibrated ? Math.round(mean * 1e4) / 1e4 : null,
      confidence_means: calibrated
        ? `expected IoU of the mask with one drawn by hand: the mean of such masks among ${about.assurance.confidence?.cases} of validation images, degraded ones included`
        : "the model is not calibrated",
      warnings,
      prompt: kind,
      seconds: {},
      model: { file: about.file, sha256: about.sha256, variant: about.variant, policy: about.policy, version: about.version },
    };
  }
}

function dice(one: Uint8Array, other: Uint8Array): number {
  let both = 0;
  for (let i = 0; i < one.length; i++) both += one[i] & (other[i] ?? 0);
  return (2 * both) / Math.max(1, area(one) + area(other));
}
