// One radiograph of the worklist: what is known of it, and its corrections.

import type { Answer, Facts, Opened, Prompt } from "./types";
import { area } from "./masks";
import { colourOf, named } from "./words";

export type State = "waiting" | "working" | "done" | "failed";

/** A mask on the page: switched on or off, corrected or not. */
export interface Layer {
  key: string;
  label: string;
  structure: string | null;
  colour: string;
  shown: boolean;
  edited: boolean;
  data: Uint8Array;
  pixels: number;
  /** Counts changes, so that the viewer knows when to draw anew. */
  version: number;
}

interface Patch {
  layer: Layer;
  box: [number, number, number, number];
  before: Uint8Array;
}

let made = 0;
const DEEPEST = 50;

export class Case {
  readonly id = ++made;
  state: State = "waiting";
  problem = "";
  opened: Opened | null = null;
  facts: Facts | null = null;
  layers: Layer[] = [];
  active: Layer | null = null;
  thumbnail = "";
  prompt: Prompt = {};
  private undone: Patch[] = [];
  private done: Patch[] = [];

  constructor(readonly file: File) {}

  get confidence(): number {
    return this.facts?.confidence ?? 1;
  }

  /** Take what the model finds by itself. */
  take(answer: Answer): void {
    this.facts = answer.facts;
    this.layers = answer.masks.map((mask, index) => layerOf(mask.structure, mask.data, index));
    this.active = this.layers[0] ?? null;
    this.state = "done";
    this.undone = [];
    this.done = [];
  }

  /** Put the answer to a box or points in a layer of its own, or in the one that is being asked for. */
  follow(answer: Answer, layer: Layer | null): Layer {
    const data = answer.masks[0].data;
    const target = layer ?? this.layerForPrompt(data);
    target.data = data;
    target.pixels = area(data);
    target.version++;
    this.active = target;
    return target;
  }

  private layerForPrompt(data: Uint8Array): Layer {
    const count = this.layers.filter((one) => one.key.startsWith("object")).length;
    const layer = layerOf(null, data, count);
    layer.key = `object${count + 1}`;
    layer.label = `Object ${count + 1}`;
    this.layers.push(layer);
    return layer;
  }

  /** Remember a part of a layer before it is painted over. */
  remember(layer: Layer, box: [number, number, number, number], before: Uint8Array): void {
    this.done.push({ layer, box, before });
    if (this.done.length > DEEPEST) this.done.shift();
    this.undone = [];
  }

  undo(): boolean {
    return swap(this.done, this.undone, this.opened?.width ?? 0);
  }

  redo(): boolean {
    return swap(this.undone, this.done, this.opened?.width ?? 0);
  }

  get canUndo(): boolean {
    return this.done.length > 0;
  }

  get canRedo(): boolean {
    return this.undone.length > 0;
  }
}

function layerOf(structure: string | null, data: Uint8Array, index: number): Layer {
  return {
    key: structure ?? `mask${index}`,
    label: named(structure, `Mask ${index + 1}`),
    structure,
    colour: colourOf(structure, index),
    shown: true,
    edited: false,
    data,
    pixels: area(data),
    version: 0,
  };
}

function swap(from: Patch[], to: Patch[], width: number): boolean {
  const patch = from.pop();
  if (!patch) return false;
  to.push({ ...patch, before: cut(patch.layer.data, width, patch.box) });
  paste(patch.layer.data, width, patch.box, patch.before);
  patch.layer.pixels = area(patch.layer.data);
  patch.layer.version++;
  return true;
}

/** Copy a rectangle [x0, y0, x1, y1) of a mask. */
export function cut(data: Uint8Array, width: number, box: [number, number, number, number]): Uint8Array {
  const [x0, y0, x1, y1] = box;
  const out = new Uint8Array((x1 - x0) * (y1 - y0));
  for (let y = y0; y < y1; y++) out.set(data.subarray(y * width + x0, y * width + x1), (y - y0) * (x1 - x0));
  return out;
}

function paste(data: Uint8Array, width: number, box: [number, number, number, number], from: Uint8Array): void {
  const [x0, y0, x1, y1] = box;
  for (let y = y0; y < y1; y++) data.set(from.subarray((y - y0) * (x1 - x0), (y - y0 + 1) * (x1 - x0)), y * width + x0);
}
