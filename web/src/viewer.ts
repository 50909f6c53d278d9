// The stage: an image with masks over it, and what a pointer does there.

import type { Case, Layer } from "./case";
import { cut } from "./case";
import { area, outline } from "./masks";
import type { Line } from "./types";

export type Tool = "pan" | "window" | "box" | "point" | "brush" | "erase";

interface Painted {
  version: number;
  fill: HTMLCanvasElement;
  path: Path2D;
}

export interface Told {
  box(box: number[], final: boolean): void;
  point(at: [number, number], inside: boolean): void;
  painted(): void;
  moved(): void;
}

const MOST_ZOOM = 40;
const MASK_SIDE = 2048;

export class Viewer {
  tool: Tool = "pan";
  style: "outline" | "fill" = "outline";
  opacity = 0.4;
  brush = 24;
  masks = true;
  lines = true;
  inverted = false;
  /** Centre and width of the window, as shares of the depth. */
  level = 0.5;
  window = 1;
  private shown: Case | null = null;
  private grey = document.createElement("canvas");
  private greyKey = "";
  private painted = new WeakMap<Layer, Painted>();
  private context: CanvasRenderingContext2D;
  private scale = 1;
  private x = 0;
  private y = 0;
  private pointers = new Map<number, [number, number]>();
  private draft: number[] | null = null;
  private stroke: { before: Uint8Array; box: [number, number, number, number] } | null = null;
  private hover: [number, number] | null = null;
  private waiting = false;
  private pinch = 0;

  constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly told: Told,
  ) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser has no canvas");
    this.context = context;
    new ResizeObserver(() => this.resized()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.draw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  show(one: Case | null): void {
    this.shown = one;
    this.greyKey = "";
    this.level = 0.5;
    this.window = 1;
    this.inverted = false;
    this.fit();
  }

  fit(): void {
    const image = this.shown?.opened;
    if (image) {
      // The tools lie over the stage: above on a desk, below on a phone.
      const [top, bottom] = matchMedia("(max-width: 760px)").matches ? [10, 100] : [66, 34];
      const width = this.canvas.width - 20 * devicePixelRatio;
      const height = this.canvas.height - (top + bottom) * devicePixelRatio;
      this.scale = Math.max(0.01, Math.min(width / image.width, height / image.height));
      this.x = (this.canvas.width - image.width * this.scale) / 2;
      this.y = top * devicePixelRatio + (height - image.height * this.scale) / 2;
    }
    this.draw();
    this.told.moved();
  }

  zoom(factor: number, cx = this.canvas.width / 2, cy = this.canvas.height / 2): void {
    const least = 0.05;
    const scale = Math.min(MOST_ZOOM, Math.max(least, this.scale * factor));
    this.x = cx - ((cx - this.x) * scale) / this.scale;
    this.y = cy - ((cy - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
    this.told.moved();
  }

  get magnification(): number {
    return this.scale / devicePixelRatio;
  }

  draw(): void {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  /** A small picture of the image with its masks, for the worklist. */
  thumbnail(one: Case, side: number): string {
    const image = one.opened;
    if (!image) return "";
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const pen = canvas.getContext("2d");
    if (!pen) return "";
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, side, side);
    const scale = side / Math.max(image.width, image.height);
    pen.setTransform(scale, 0, 0, scale, (side - image.width * scale) / 2, (side - image.height * scale) / 2);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.greyOf(one), 0, 0, image.width, image.height);
    for (const layer of one.layers) {
      pen.globalAlpha = 0.45;
      pen.drawImage(this.paintedOf(layer, image.width, image.height).fill, 0, 0, image.width, image.height);
    }
    this.greyKey = "";
    return canvas.toDataURL("image/jpeg", 0.8);
  }

  private resized(): void {
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(1, Math.round(clientWidth * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * devicePixelRatio));
    this.fit();
  }

  private greyOf(one: Case): HTMLCanvasElement {
    const image = one.opened;
    const key = `${one.id} ${this.level} ${this.window} ${this.inverted}`;
    if (!image || key === this.greyKey) return this.grey;
    const { width, height, data, depth } = image.grey;
    const table = new Uint8Array(depth + 1);
    const low = (this.level - this.window / 2) * depth;
    for (let v = 0; v <= depth; v++) {
      const share = Math.min(1, Math.max(0, (v - low) / Math.max(1, this.window * depth)));
      table[v] = Math.round(255 * (this.inverted ? 1 - share : share));
    }
    const pixels = new Uint32Array(width * height);
    for (let i = 0; i < pixels.length; i++) {
      const v = table[data[i]];
      pixels[i] = 0xff000000 | (v << 16) | (v << 8) | v;
    }
    this.grey.width = width;
    this.grey.height = height;
    const bytes = new Uint8ClampedArray(pixels.buffer);
    this.grey.getContext("2d")?.putImageData(new ImageData(bytes, width, height), 0, 0);
    this.greyKey = key;
    return this.grey;
  }

  private paintedOf(layer: Layer, width: number, height: number): Painted {
    const known = this.painted.get(layer);
    if (known && known.version === layer.version) return known;
    const step = Math.max(1, Math.ceil(Math.max(width, height) / MASK_SIDE));
    const w = Math.ceil(width / step);
    const h = Math.ceil(height / step);
    const small = step === 1 ? layer.data : new Uint8Array(w * h);
    if (step > 1) {
      for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) small[y * w + x] = layer.data[y * step * width + x * step];
    }
    const fill = document.createElement("canvas");
    fill.width = w;
    fill.height = h;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(layer.colour.slice(i, i + 2), 16));
    const colour = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
    const pixels = new Uint32Array(w * h);
    for (let i = 0; i < pixels.length; i++) if (small[i]) pixels[i] = colour;
    fill.getContext("2d")?.putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), w, h), 0, 0);
    const path = new Path2D();
    path.addPath(outline(small, w, h), new DOMMatrix([step, 0, 0, step, 0, 0]));
    const made = { version: layer.version, fill, path };
    this.painted.set(layer, made);
    return made;
  }

  private paint(): void {
    const pen = this.context;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const one = this.shown;
    const image = one?.opened;
    if (!one || !image) return;
    pen.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    pen.imageSmoothingEnabled = this.magnification < 4;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.greyOf(one), 0, 0, image.width, image.height);
    if (this.masks) for (const layer of one.layers) if (layer.shown) this.paintLayer(pen, layer, image.width, image.height);
    if (this.lines && one.facts?.measures) this.paintLines(pen, one);
    this.paintPrompt(pen, one);
    if (this.hover && (this.tool === "brush" || this.tool === "erase")) {
      pen.lineWidth = 1.5 / this.scale;
      pen.strokeStyle = this.tool === "brush" ? "#fff" : "#ffb4a8";
      pen.beginPath();
      pen.arc(this.hover[0], this.hover[1], this.radius(), 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  private paintLayer(pen: CanvasRenderingContext2D, layer: Layer, width: number, height: number): void {
    const { fill, path } = this.paintedOf(layer, width, height);
    if (this.style === "fill") {
      pen.globalAlpha = this.opacity;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(fill, 0, 0, width, height);
      pen.globalAlpha = 1;
    }
    const active = this.shown?.active === layer && (this.tool === "brush" || this.tool === "erase");
    pen.lineCap = pen.lineJoin = "round";
    // A dark rim keeps a bright outline legible on bright bone.
    pen.strokeStyle = "rgb(0 0 0 / 0.45)";
    pen.lineWidth = ((active ? 4.6 : 3.6) * devicePixelRatio) / this.scale;
    pen.stroke(path);
    pen.strokeStyle = layer.colour;
    pen.lineWidth = ((active ? 2.8 : 1.8) * devicePixelRatio) / this.scale;
    pen.stroke(path);
  }

  private paintLines(pen: CanvasRenderingContext2D, one: Case): void {
    const unit = devicePixelRatio / this.scale;
    for (const measure of Object.values(one.facts?.measures ?? {})) {
      if (measure.value === null) continue;
      for (const [x0, y0, x1, y1] of linesOf(measure.lines)) {
        for (const [colour, width] of [["rgb(0 0 0 / 0.6)", 4], ["#ffffff", 1.8]] as const) {
          pen.strokeStyle = colour;
          pen.lineWidth = width * unit;
          pen.beginPath();
          pen.moveTo(x0, y0);
          pen.lineTo(x1, y1);
          for (const [x, y] of [[x0, y0], [x1, y1]]) {
            pen.moveTo(x, y - 7 * unit);
            pen.lineTo(x, y + 7 * unit);
          }
          pen.stroke();
        }
      }
    }
  }

  private paintPrompt(pen: CanvasRenderingContext2D, one: Case): void {
    const unit = devicePixelRatio / this.scale;
    const boxes = this.draft ? [this.draft] : (one.prompt.boxes ?? []);
    pen.setLineDash([6 * unit, 4 * unit]);
    pen.lineWidth = 1.6 * unit;
    pen.strokeStyle = "#fff";
    for (const [x0, y0, x1, y1] of boxes) pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    pen.setLineDash([]);
    one.prompt.points?.forEach(([x, y], index) => {
      const inside = (one.prompt.labels?.[index] ?? 1) === 1;
      pen.beginPath();
      pen.arc(x, y, 6 * unit, 0, 2 * Math.PI);
      pen.fillStyle = inside ? "#23c483" : "#f0526b";
      pen.fill();
      pen.strokeStyle = "#fff";
      pen.lineWidth = 2 * unit;
      pen.stroke();
    });
  }

  private at(event: PointerEvent | WheelEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * devicePixelRatio, (event.clientY - box.top) * devicePixelRatio];
  }

  private toImage([x, y]: [number, number]): [number, number] {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  private clamped([x, y]: [number, number]): [number, number] {
    const image = this.shown?.opened;
    return image ? [Math.min(image.width, Math.max(0, x)), Math.min(image.height, Math.max(0, y))] : [x, y];
  }

  private radius(): number {
    return (this.brush * devicePixelRatio) / this.scale / 2;
  }

  private down(event: PointerEvent): void {
    if (!this.shown?.opened) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    const at = this.at(event);
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size > 1) {
      this.draft = this.stroke = null;
      return;
    }
    const here = this.clamped(this.toImage(at));
    if (this.tool === "box" && event.button === 0) this.draft = [...here, ...here];
    if ((this.tool === "brush" || this.tool === "erase") && event.button === 0) this.beginStroke(here);
    if (this.tool === "point") this.told.point(here, event.button === 0 && !event.shiftKey && !event.altKey);
  }

  private move(event: PointerEvent): void {
    const at = this.at(event);
    const before = this.pointers.get(event.pointerId);
    this.hover = this.toImage(at);
    if (!before) {
      if (this.tool === "brush" || this.tool === "erase") this.draw();
      return;
    }
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size === 2) this.pinched();
    else if (event.buttons & 6 || this.tool === "pan" || event.ctrlKey) this.pan(at[0] - before[0], at[1] - before[1]);
    else if (this.tool === "window") this.rewindow(at[0] - before[0], at[1] - before[1]);
    else if (this.draft) {
      [this.draft[2], this.draft[3]] = this.clamped(this.toImage(at));
      this.told.box(sorted(this.draft), false);
      this.draw();
    } else if (this.stroke) this.dab(this.toImage(before), this.toImage(at));
  }

  private up(event: PointerEvent): void {
    this.pointers.delete(event.pointerId);
    this.pinch = 0;
    if (this.draft) {
      const box = sorted(this.draft);
      this.draft = null;
      if (box[2] - box[0] >= 2 && box[3] - box[1] >= 2) this.told.box(box, true);
      this.draw();
    }
    if (this.stroke) this.endStroke();
  }

  private pan(dx: number, dy: number): void {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  private pinched(): void {
    const [a, b] = [...this.pointers.values()];
    const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (this.pinch) this.zoom(apart / this.pinch, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    this.pinch = apart;
  }

  private rewindow(dx: number, dy: number): void {
    const span = this.canvas.height;
    this.window = Math.min(2, Math.max(0.02, this.window + dx / span));
    this.level = Math.min(1.2, Math.max(-0.2, this.level - dy / span));
    this.draw();
    this.told.moved();
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * 0.0016), ...this.at(event));
  }

  private beginStroke(at: [number, number]): void {
    const one = this.shown;
    if (!one?.active) return;
    this.stroke = { before: one.active.data.slice(), box: [Infinity, Infinity, 0, 0] };
    this.dab(at, at);
  }

  private dab(from: [number, number], to: [number, number]): void {
    const layer = this.shown?.active;
    const image = this.shown?.opened;
    if (!layer || !image || !this.stroke) return;
    const radius = Math.max(0.6, this.radius());
    const value = this.tool === "brush" ? 1 : 0;
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / (radius / 2)));
    const box = this.stroke.box;
    for (let step = 0; step <= steps; step++) {
      const cx = from[0] + ((to[0] - from[0]) * step) / steps;
      const cy = from[1] + ((to[1] - from[1]) * step) / steps;
      const y0 = Math.max(0, Math.floor(cy - radius));
      const y1 = Math.min(image.height, Math.ceil(cy + radius));
      for (let y = y0; y < y1; y++) {
        const half = Math.sqrt(Math.max(0, radius ** 2 - (y + 0.5 - cy) ** 2));
        const x0 = Math.max(0, Math.round(cx - half));
        const x1 = Math.min(image.width, Math.round(cx + half));
        if (x1 <= x0) continue;
        layer.data.fill(value, y * image.width + x0, y * image.width + x1);
        box[0] = Math.min(box[0], x0);
        box[1] = Math.min(box[1], y);
        box[2] = Math.max(box[2], x1);
        box[3] = Math.max(box[3], y + 1);
      }
    }
    layer.version++;
    this.draw();
  }

  private endStroke(): void {
    const one = this.shown;
    const stroke = this.stroke;
    this.stroke = null;
    if (!one?.active || !one.opened || !stroke || stroke.box[2] <= stroke.box[0]) return;
    one.remember(one.active, stroke.box, cut(stroke.before, one.opened.width, stroke.box));
    one.active.edited = true;
    one.active.pixels = area(one.active.data);
    this.told.painted();
  }
}

function sorted([a, b, c, d]: number[]): number[] {
  return [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
}

/** The lines of a measure, however they are grouped. */
export function linesOf(given: unknown): Line[] {
  if (!given || typeof given !== "object") return [];
  const found: Line[] = [];
  for (const one of Object.values(given)) {
    if (!Array.isArray(one)) {
      found.push(...linesOf(one));
      continue;
    }
    const flat = one.flat();
    if (flat.length === 4 && flat.every((n) => typeof n === "number")) found.push(flat as Line);
  }
  return found;
}
