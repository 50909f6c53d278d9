// What the parts of the page tell each other.

/** A warning of the model, as results hold it. */
export interface Caution {
  code: string;
  message: string;
  value: number;
  limit: number;
}

export type Line = [number, number, number, number];

export interface Measure {
  value: number | null;
  unit?: string;
  confidence?: number | null;
  withheld?: string[];
  lines?: Line[] | Record<string, Line | number[][]>;
}

/** A result's facts: what the command line writes as JSON. */
export interface Facts {
  image: string;
  width: number;
  height: number;
  box: number[];
  area_px: number;
  area_mm2: number | null;
  objects: { box: number[]; score: number; area_px: number; area_mm2: number | null; structure?: string }[];
  confidence: number | null;
  confidence_means: string;
  warnings: Caution[];
  measures?: Record<string, Measure>;
  prompt: "automatic" | "box" | "points";
  seconds: Record<string, number>;
  model: Record<string, string>;
  [more: string]: unknown;
}

/** One mask of the original's size, a byte a pixel: 0 or 1. */
export interface Mask {
  structure: string | null;
  data: Uint8Array;
}

export interface Answer {
  facts: Facts;
  masks: Mask[];
}

/** The image in grey, to be shown: no larger than a screen needs. */
export interface Grey {
  width: number;
  height: number;
  depth: number;
  data: Uint8Array | Uint16Array;
}

export interface Opened {
  id: string;
  name: string;
  width: number;
  height: number;
  spacing: [number, number] | null;
  grey: Grey;
  /** Whether results can be had as DICOM objects. */
  dicom?: boolean;
}

export interface Prompt {
  boxes?: number[][];
  points?: number[][];
  labels?: number[];
}

export interface ModelInfo {
  name: string;
  sha256: string;
  variant: string;
  policy: string;
  version: string;
  structures: string[];
  points: boolean;
}

export type FileKind = "mask" | "labels" | "overlay" | "json" | "contours" | "zip" | "dicom";

/** Where the model runs: in a server, or in this page. */
export interface Engine {
  readonly files: FileKind[];
  start(say: (words: string, share: number) => void): Promise<ModelInfo>;
  open(file: File): Promise<Opened>;
  ask(image: Opened, prompt: Prompt): Promise<Answer>;
  file(image: Opened, kind: FileKind): Promise<{ data: Blob; name: string }>;
}

/** A refusal in words for people. */
export class Refused extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}
