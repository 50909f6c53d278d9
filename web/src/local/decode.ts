// Files to grey pixels, in the browser. What it cannot read it says so of.

import type { Image } from "./geometry";
import { decodeDicom } from "./dicom";

const MOST_PIXELS = 40_000_000;

export function check(width: number, height: number): void {
  if (!(width > 0 && height > 0 && width * height <= MOST_PIXELS)) {
    throw new Error(`${height}x${width} pixels, which no radiograph has (the limit is ${MOST_PIXELS})`);
  }
}

export async function decode(bytes: Uint8Array): Promise<Image> {
  const starts = (...head: number[]): boolean => head.every((byte, i) => bytes[i] === byte);
  let image: Image;
  if (starts(0x89, 0x50, 0x4e, 0x47)) image = (await deepPng(bytes)) ?? (await byBrowser(bytes, "image/png"));
  else if (starts(0xff, 0xd8, 0xff)) image = await byBrowser(bytes, "image/jpeg");
  else if (starts(0x52, 0x49, 0x46, 0x46)) image = await byBrowser(bytes, "image/webp");
  else if (starts(0x42, 0x4d)) image = await byBrowser(bytes, "image/bmp");
  else if (starts(0x49, 0x49, 0x2a) || starts(0x4d, 0x4d, 0, 0x2a)) throw new Error("TIFF is not read in the browser: save it as PNG, or use the server");
  else if (String.fromCharCode(...bytes.subarray(128, 132)) === "DICM" || starts(8, 0) || starts(2, 0)) image = await decodeDicom(bytes);
  else throw new Error("not an image that can be read here: give PNG, JPEG or DICOM");
  let low = Infinity;
  let high = -Infinity;
  for (const value of image.grey) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === high) throw new Error("an image of one colour; give a radiograph");
  return image;
}

/** Decode what browsers do well: 8 bits. Colours become grey as Pillow's mode L has it. */
export async function byBrowser(bytes: Uint8Array, type: string): Promise<Image> {
  if (type === "image/png") {
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    check(view.getUint32(16), view.getUint32(20));
  }
  let picture: ImageBitmap;
  try {
    picture = await createImageBitmap(new Blob([bytes as BlobPart], { type }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("cannot be read as an image; it is truncated, damaged or not an image");
  }
  const { width, height } = picture;
  check(width, height);
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { colorSpace: "srgb" });
  if (!pen) throw new Error("this browser has no canvas");
  // Transparency over black, the colour of air.
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(picture, 0, 0);
  const { data } = pen.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return { width, height, grey, spacing: null };
}

/** Decode a 16-bit grey PNG, of which browsers keep the high bytes only; null for any other. */
async function deepPng(bytes: Uint8Array): Promise<Image | null> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [width, height, depth, colour, interlaced] = [view.getUint32(16), view.getUint32(20), bytes[24], bytes[25], bytes[28]];
  check(width, height);
  if (depth !== 16 || colour !== 0) return null;
  if (interlaced) throw new Error("an interlaced PNG of 16 bits is not read in the browser: save it without interlacing");
  const parts: Uint8Array[] = [];
  for (let at = 8; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw new Error("truncated (no end-of-image mark); copy it again");
    if (kind === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    if (kind === "IEND") break;
    at += 12 + length;
  }
  const rows = await inflate(new Blob(parts as BlobPart[]), height * (2 * width + 1));
  const stored = new Uint16Array(width * height);
  let above: Uint8Array = new Uint8Array(2 * width);
  for (let y = 0; y < height; y++) {
    const start = y * (2 * width + 1);
    const row = rows.subarray(start + 1, start + 1 + 2 * width);
    unfilter(rows[start], row, above);
    for (let x = 0; x < width; x++) stored[y * width + x] = (row[2 * x] << 8) | row[2 * x + 1];
    above = row;
  }
  return { width, height, grey: stretch(stored), spacing: null };
}

function unfilter(kind: number, row: Uint8Array, above: Uint8Array): void {
  for (let i = 0; i < row.length; i++) {
    const a = i > 1 ? row[i - 2] : 0;
    const b = above[i];
    const c = i > 1 ? above[i - 2] : 0;
    if (kind === 1) row[i] += a;
    else if (kind === 2) row[i] += b;
    else if (kind === 3) row[i] += (a + b) >> 1;
    else if (kind === 4) {
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      row[i] += pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
    }
  }
}

/** Inflate up to the bytes that are expected: a small file may claim to be endless. */
async function inflate(packed: Blob, expected: number): Promise<Uint8Array> {
  const out = new Uint8Array(expected);
  let filled = 0;
  try {
    const reader = packed.stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || filled >= expected) break;
      out.set(value.subarray(0, expected - filled), filled);
      filled += value.length;
    }
  } catch {
    filled = 0;
  }
  if (filled < expected) throw new Error("damaged pixel data; copy the file again");
  return out;
}

/** Stretch values over 16 bits, as `to_grey` does with anything deeper than a byte. */
export function stretch(values: Uint16Array | Float64Array): Uint16Array {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const factor = high > low ? 65535 / (high - low) : 0;
  const grey = new Uint16Array(values.length);
  for (let i = 0; i < grey.length; i++) grey[i] = Math.trunc((values[i] - low) * factor + 0.5);
  return grey;
}
