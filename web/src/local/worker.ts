// Runs the model beside the page, so that the page stays quick.

import type { Grey, Opened, Prompt } from "../types";
import { decode } from "./decode";
import type { Image } from "./geometry";
import type { Described, Encoded } from "./network";
import { Network } from "./network";

export type Request =
  | { kind: "load"; about: Described; wasm: Uint8Array; encoder: Uint8Array; decoder: Uint8Array }
  | { kind: "open"; id: string; name: string; data: ArrayBuffer }
  | { kind: "ask"; id: string; prompt: Prompt };

interface Held {
  name: string;
  image: Image;
  encoded: Encoded | null;
}

// Open at once: each holds its pixels and 4 MB of embeddings.
const MOST = 8;
const SHOWN_SIDE = 2048;
const held = new Map<string, Held>();
let network: Network | null = null;

async function serve(request: Request): Promise<{ value: unknown; moved: Transferable[] }> {
  if (request.kind === "load") {
    network = await Network.load(request.about, request.wasm, request.encoder, request.decoder);
    return { value: await network.check(), moved: [] };
  }
  if (!network) throw new Error("the model is not loaded");
  if (request.kind === "open") {
    const image = await decode(new Uint8Array(request.data));
    held.set(request.id, { name: request.name, image, encoded: null });
    for (const key of held.keys()) if (held.size > MOST && key !== request.id) held.delete(key);
    const grey = shown(image);
    const opened: Opened = { id: request.id, name: request.name, width: image.width, height: image.height, spacing: image.spacing, grey };
    return { value: opened, moved: [grey.data.buffer] };
  }
  const one = held.get(request.id);
  if (!one) throw new Error("no_such_session");
  one.encoded ??= await network.encode(one.image);
  const answer = await network.answer(one.encoded, one.name, request.prompt);
  return { value: answer, moved: answer.masks.map((mask) => mask.data.buffer) };
}

/** The image, no larger than a screen needs: means of squares. */
function shown({ width, height, grey }: Image): Grey {
  const depth = grey instanceof Uint16Array ? 65535 : 255;
  const step = Math.ceil(Math.max(width, height) / SHOWN_SIDE);
  if (step === 1) return { width, height, depth, data: grey.slice() };
  const w = Math.floor(width / step);
  const h = Math.floor(height / step);
  const data = depth === 255 ? new Uint8Array(w * h) : new Uint16Array(w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let v = 0; v < step; v++) for (let u = 0; u < step; u++) sum += grey[(y * step + v) * width + x * step + u];
      data[y * w + x] = sum / (step * step);
    }
  }
  return { width: w, height: h, depth, data };
}

// One after another: the runtime computes one thing at a time.
let last: Promise<unknown> = Promise.resolve();
self.onmessage = ({ data }: MessageEvent<{ number: number; request: Request }>): void => {
  last = last.then(async () => {
    try {
      const { value, moved } = await serve(data.request);
      self.postMessage({ number: data.number, value }, { transfer: moved });
    } catch (error) {
      self.postMessage({ number: data.number, error: error instanceof Error ? error.message : String(error) });
    }
  });
};
