// The model in this page: no image leaves it.

import { greyPng } from "../masks";
import type { Answer, Engine, FileKind, ModelInfo, Opened, Prompt } from "../types";
import { Refused } from "../types";
import type { Described } from "./network";
import type { Request } from "./worker";
import workerText from "worker-text.worker";

interface Part {
  sha256: string;
  gz: string;
}

declare global {
  // Filled by the scripts in `data/`: scripts load from a disk, too, where nothing can be fetched.
  var adaloraParts: Record<string, Part> | undefined;
  var adaloraModel: Described | undefined;
}

export class LocalEngine implements Engine {
  readonly files: FileKind[] = ["mask", "json"];
  private worker: Worker | null = null;
  private count = 0;
  private open_ = new Map<number, { done: (value: never) => void; failed: (error: Error) => void }>();
  private sources = new WeakMap<Opened, File>();
  private last = new Map<string, Answer>();

  async start(say: (words: string, share: number) => void): Promise<ModelInfo> {
    say("Loading the model…", 0);
    await script("data/model.js");
    const about = globalThis.adaloraModel;
    if (!about) throw new Refused("no_model", "this site holds no model; make it with `adalora-qat web`");
    const [wasm, encoder, decoder] = await Promise.all(["wasm", "encoder", "decoder"].map((name) => part(name)));
    say("Checking the model on a known case…", 0.7);
    this.worker = new Worker(URL.createObjectURL(new Blob([workerText], { type: "text/javascript" })));
    this.worker.onmessage = ({ data }): void => {
      const waiting = this.open_.get(data.number);
      this.open_.delete(data.number);
      if (data.error) waiting?.failed(new Refused("local", data.error));
      else waiting?.done(data.value as never);
    };
    const moved = [wasm, encoder, decoder].map((bytes) => bytes.buffer as ArrayBuffer);
    const same = await this.request<number>({ kind: "load", about, wasm, encoder, decoder }, moved);
    document.body.dataset.golden = same.toFixed(5);
    return { ...about };
  }

  async open(file: File): Promise<Opened> {
    const data = await file.arrayBuffer();
    const id = String(++this.count);
    const opened = await this.request<Opened>({ kind: "open", id, name: file.name, data }, [data]);
    this.sources.set(opened, file);
    return opened;
  }

  async ask(image: Opened, prompt: Prompt): Promise<Answer> {
    let answer: Answer;
    try {
      answer = await this.request<Answer>({ kind: "ask", id: image.id, prompt });
    } catch (error) {
      const file = this.sources.get(image);
      if (!(error instanceof Refused) || error.message !== "no_such_session" || !file) throw error;
      // The worker keeps a few images only; the page still has the file.
      image.id = (await this.open(file)).id;
      answer = await this.request<Answer>({ kind: "ask", id: image.id, prompt });
    }
    const masks = answer.masks.map((mask) => ({ ...mask, data: mask.data.slice() }));
    this.last.set(image.name, { facts: answer.facts, masks });
    return answer;
  }

  async file(image: Opened, kind: FileKind): Promise<{ data: Blob; name: string }> {
    const answer = this.last.get(image.name);
    if (!answer) throw new Refused("no_result", "segment the image first");
    const stem = image.name.replace(/\.[A-Za-z]\w{0,4}$/, "");
    if (kind === "json") {
      return { data: new Blob([`${JSON.stringify(answer.facts, null, 2)}\n`], { type: "application/json" }), name: `${stem}.json` };
    }
    const union = new Uint8Array(image.width * image.height);
    for (const mask of answer.masks) for (let i = 0; i < union.length; i++) union[i] |= mask.data[i] * 255;
    return { data: await greyPng(union, image.width, image.height), name: `${stem}_mask.png` };
  }

  private request<T>(request: Request, moved: Transferable[] = []): Promise<T> {
    const number = ++this.count;
    return new Promise<T>((done, failed) => {
      this.open_.set(number, { done: done as (value: never) => void, failed });
      this.worker?.postMessage({ number, request }, moved);
    });
  }
}

function script(place: string): Promise<void> {
  return new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = place;
    element.onload = (): void => done();
    element.onerror = (): void => failed(new Refused("no_file", `${place} is missing from this site`));
    document.head.append(element);
  });
}

function fromBase64(text: string): Uint8Array {
  const own = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array }).fromBase64;
  if (own) return own(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Unpack a part of the site, and hold it against its hash where the browser lets that be computed. */
async function part(name: string): Promise<Uint8Array> {
  await script(`data/${name}.js`);
  const found = globalThis.adaloraParts?.[name];
  if (!found) throw new Refused("damaged", `data/${name}.js is damaged`);
  globalThis.adaloraParts = { ...globalThis.adaloraParts, [name]: { sha256: "", gz: "" } };
  let bytes: Uint8Array;
  try {
    const packed = fromBase64(found.gz);
    const plain = new Blob([packed as BlobPart]).stream().pipeThrough(new DecompressionStream("gzip"));
    bytes = new Uint8Array(await new Response(plain).arrayBuffer());
  } catch {
    throw new Refused("damaged", `data/${name}.js is damaged`);
  }
  if (globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
    const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== found.sha256) throw new Refused("damaged", `data/${name}.js is not the file that was made (its SHA-256 is ${hex.slice(0, 12)}…)`);
  }
  return bytes;
}
