// A DICOM radiograph to grey pixels with bright bones, as the library's `imaging.dicom` shows it.

import charls from "@cornerstonejs/codec-charls/decodewasmjs";
import charlsWasm from "@cornerstonejs/codec-charls/decodewasm";
import openjpeg from "@cornerstonejs/codec-openjpeg/decodewasmjs";
import openjpegWasm from "@cornerstonejs/codec-openjpeg/decodewasm";
import * as parser from "dicom-parser";
import { Decoder as Lossless } from "jpeg-lossless-decoder-js";
import { byBrowser, check, stretch } from "./decode";
import type { Image } from "./geometry";

const RADIOGRAPHS = ["CR", "DX", "RG", "DR"];
const CLASSES = ["1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7"];
const LEAST_LEVELS = 16;
type Values = Float64Array;

export async function decodeDicom(bytes: Uint8Array): Promise<Image> {
  let data: parser.DataSet;
  try {
    data = parser.parseDicom(bytes);
  } catch {
    throw new Error("damaged or truncated DICOM; copy it again");
  }
  const text = (tag: string): string => (data.string(tag) ?? "").replace(/[\0 ]+$/, "");
  const modality = text("x00080060").toUpperCase();
  const vague = ["OT", ""].includes(modality) && CLASSES.includes(text("x00080016"));
  if (!RADIOGRAPHS.includes(modality) && !vague) throw new Error(`modality ${modality || "(empty)"} is not a radiograph`);
  if ((data.intString("x00280008") ?? 1) > 1) throw new Error("several frames in one file; a radiograph has one");
  const height = data.uint16("x00280010") ?? 0;
  const width = data.uint16("x00280011") ?? 0;
  check(width, height);
  if ((data.uint16("x00280002") ?? 1) !== 1) throw new Error("in colour, which is not read in the browser; use the server");
  const stored = await storedValues(data, bytes, width, height);
  return { width, height, grey: shown(data, stored), spacing: spacingOf(data) };
}

async function storedValues(data: parser.DataSet, bytes: Uint8Array, width: number, height: number): Promise<Int32Array> {
  const element = data.elements.x7fe00010;
  if (!element) throw new Error("no pixel data in the file");
  const allocated = data.uint16("x00280100") ?? 16;
  const bits = data.uint16("x00280101") ?? allocated;
  const lowest = (data.uint16("x00280102") ?? bits - 1) + 1 - bits;
  const signed = data.uint16("x00280103") === 1;
  if (![8, 16].includes(allocated) || bits < 1 || bits > allocated || lowest < 0) throw new Error(`${bits} bits stored of ${allocated} is not read`);
  const syntax = (data.string("x00020010") ?? "1.2.840.10008.1.2").replace(/[\0 ]+$/, "");
  const packed = element.encapsulatedPixelData === true;
  const raw = packed ? await unpack(data, element, syntax) : plain(bytes, element, allocated, width * height, syntax);
  if (raw.length < width * height) throw new Error("pixel data too short; damaged");
  const values = new Int32Array(width * height);
  const top = 1 << (bits - 1);
  for (let i = 0; i < values.length; i++) {
    let value = raw[i];
    if (!packed || signed) value = (value >> lowest) & ((1 << bits) - 1);
    values[i] = signed ? (value ^ top) - top : value;
  }
  return values;
}

function plain(bytes: Uint8Array, element: parser.Element, allocated: number, count: number, syntax: string): Uint8Array | Uint16Array {
  const size = (count * allocated) / 8;
  if (element.length < size) throw new Error("pixel data too short; damaged");
  const own = bytes.slice(element.dataOffset, element.dataOffset + size);
  if (allocated === 8) return own;
  if (syntax === "1.2.840.10008.1.2.2") for (let i = 0; i < own.length; i += 2) [own[i], own[i + 1]] = [own[i + 1], own[i]];
  return new Uint16Array(own.buffer);
}

async function unpack(data: parser.DataSet, element: parser.Element, syntax: string): Promise<ArrayLike<number>> {
  let frame: Uint8Array;
  try {
    const offsets = element.basicOffsetTable?.length ? undefined : parser.createJPEGBasicOffsetTable(data, element);
    frame = parser.readEncapsulatedImageFrame(data, element, 0, offsets);
  } catch {
    frame = parser.readEncapsulatedPixelDataFromFragments(data, element, 0, element.fragments?.length ?? 1);
  }
  frame = frame.slice();
  switch (syntax) {
    case "1.2.840.10008.1.2.4.50":
      return (await byBrowser(frame, "image/jpeg")).grey;
    case "1.2.840.10008.1.2.4.57":
    case "1.2.840.10008.1.2.4.70": {
      const found = new Lossless().decode(frame.buffer as ArrayBuffer, 0, frame.length, 2) as unknown as { buffer: ArrayBuffer } | ArrayBuffer;
      return new Uint16Array(found instanceof ArrayBuffer ? found : found.buffer);
    }
    case "1.2.840.10008.1.2.4.80":
    case "1.2.840.10008.1.2.4.81":
      return byCodec(new (await charls({ wasmBinary: charlsWasm })).JpegLSDecoder(), frame);
    case "1.2.840.10008.1.2.4.90":
    case "1.2.840.10008.1.2.4.91":
      return byCodec(new (await openjpeg({ wasmBinary: openjpegWasm })).J2KDecoder(), frame);
    default:
      throw new Error(`transfer syntax ${syntax} is not read in the browser; use the server`);
  }
}

interface Codec {
  getEncodedBuffer(length: number): Uint8Array;
  decode(): void;
  getFrameInfo(): { bitsPerSample: number };
  getDecodedBuffer(): Uint8Array;
  delete(): void;
}

function byCodec(codec: Codec, frame: Uint8Array): ArrayLike<number> {
  try {
    codec.getEncodedBuffer(frame.length).set(frame);
    codec.decode();
    const bytes = codec.getDecodedBuffer().slice();
    return codec.getFrameInfo().bitsPerSample > 8 ? new Uint16Array(bytes.buffer) : bytes;
  } catch {
    throw new Error("damaged pixel data; copy the file again");
  } finally {
    codec.delete();
  }
}

/** Modality LUT or rescale, VOI LUT or first window, bones bright (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2). */
function shown(data: parser.DataSet, stored: Int32Array): Uint16Array {
  const padding = data.elements.x00280120 ? paddingOf(data) : null;
  let low = Infinity;
  let high = -Infinity;
  for (const value of stored) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const count = high - low + 1;
  const outside = (value: number): boolean => padding !== null && value >= padding[0] && value <= padding[1];
  const seen = new Uint8Array(count);
  for (const value of stored) seen[value - low] = 1;
  const inside: number[] = [];
  for (let i = 0; i < count; i++) if (seen[i] && !outside(low + i)) inside.push(i);
  if (!inside.length) throw new Error("every pixel is padding");
  const values = modality(data, low, count);
  let grey = ofInterest(data, values, inside);
  const inverted = (data.string("x00280004") ?? "").trim() === "MONOCHROME1" || (data.string("x20500020") ?? "").trim() === "INVERSE";
  if (inverted) grey = grey.map((value) => 1 - value);
  const table = new Float64Array(count);
  for (let i = 0; i < count; i++) table[i] = outside(low + i) ? 0 : Math.round(grey[i] * 65535);
  const pixels = new Float64Array(stored.length);
  for (let i = 0; i < stored.length; i++) pixels[i] = table[stored[i] - low];
  return stretch(pixels);
}

function paddingOf(data: parser.DataSet): [number, number] {
  const signed = data.uint16("x00280103") === 1;
  const read = (tag: string): number | undefined => (signed ? data.int16(tag) : data.uint16(tag));
  const value = read("x00280120") ?? 0;
  const limit = data.elements.x00280121 ? (read("x00280121") ?? value) : value;
  return [Math.min(value, limit), Math.max(value, limit)];
}

function modality(data: parser.DataSet, low: number, count: number): Values {
  const levels = Float64Array.from({ length: count }, (_, i) => low + i);
  const table = data.elements.x00283000?.items?.[0]?.dataSet;
  if (table) return lookUp(table, levels).values;
  const slope = data.floatString("x00281053") || 1;
  const intercept = data.floatString("x00281052") ?? 0;
  return levels.map((value) => value * slope + intercept);
}

function ofInterest(data: parser.DataSet, values: Values, inside: number[]): Values {
  const kept = (grey: Values): boolean => {
    const levels = (given: Values): number => new Set(inside.map((i) => given[i])).size;
    return levels(grey) >= Math.min(LEAST_LEVELS, levels(values));
  };
  const item = data.elements.x00283010?.items?.[0]?.dataSet;
  if (item) {
    const { values: found, table } = lookUp(item, values);
    const least = table.reduce((a, b) => Math.min(a, b), Infinity);
    const most = table.reduce((a, b) => Math.max(a, b), -Infinity);
    const grey = found.map((value) => (value - least) / Math.max(most - least, 1));
    if (kept(grey)) return grey;
  }
  const centre = data.floatString("x00281050");
  const width = data.floatString("x00281051");
  if (centre !== undefined && width !== undefined && Number.isFinite(centre) && width > 0) {
    const grey = windowed(values, centre, width, (data.string("x00281056") ?? "LINEAR").trim());
    if (kept(grey)) return grey;
  }
  const bits = data.uint16("x00280101") ?? 16;
  let low = Infinity;
  let high = -Infinity;
  for (const i of inside) {
    low = Math.min(low, values[i]);
    high = Math.max(high, values[i]);
  }
  if (bits <= 8 && low >= 0 && high <= 2 ** bits - 1) [low, high] = [0, 2 ** bits - 1];
  return values.map((value) => Math.min(1, Math.max(0, (value - low) / Math.max(high - low, 1e-9))));
}

function windowed(values: Values, centre: number, width: number, kind: string): Values {
  if (kind === "SIGMOID") return values.map((value) => 1 / (1 + Math.exp(Math.min(500, Math.max(-500, (-4 * (value - centre)) / width)))));
  const [c, w] = kind === "LINEAR_EXACT" ? [centre, width] : [centre - 0.5, Math.max(width - 1, 1e-9)];
  return values.map((value) => Math.min(1, Math.max(0, (value - c) / w + 0.5)));
}

function lookUp(item: parser.DataSet, values: Values): { values: Values; table: Values } {
  const entries = item.uint16("x00283002", 0) || 65536;
  const element = item.elements.x00283006;
  const narrow = (item.uint16("x00283002", 2) ?? 16) <= 8 && element.length < 2 * entries;
  const first = values.some((value) => value < 0) ? (item.int16("x00283002", 1) ?? 0) : (item.uint16("x00283002", 1) ?? 0);
  const table = new Float64Array(entries);
  for (let i = 0; i < entries; i++) table[i] = (narrow ? item.byteArray[element.dataOffset + i] : item.uint16("x00283006", i)) ?? 0;
  return { values: values.map((value) => table[Math.min(entries - 1, Math.max(0, Math.round(value) - first))]), table };
}

function spacingOf(data: parser.DataSet): [number, number] | null {
  for (const tag of ["x00280030", "x00181164"]) {
    const row = data.floatString(tag, 0);
    const column = data.floatString(tag, 1);
    if (row !== undefined && column !== undefined && [row, column].every((one) => one >= 0.01 && one <= 10)) return [row, column];
  }
  return null;
}
