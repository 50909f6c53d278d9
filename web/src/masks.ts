// Masks: runs, outlines, PNG files. A mask is a byte a pixel, row by row.

/** Decode COCO's runs, column by column, of the background first. */
export function fromRuns(rle: { size: [number, number]; counts: number[] }): Uint8Array {
  const [height, width] = rle.size;
  const mask = new Uint8Array(height * width);
  let place = 0;
  rle.counts.forEach((count, index) => {
    if (index % 2) {
      for (let end = place + count, i = place; i < end; i++) {
        mask[(i % height) * width + ((i / height) | 0)] = 1;
      }
    }
    place += count;
  });
  return mask;
}

/** The edges of a mask's pixels as a path in pixels of the image. */
export function outline(mask: Uint8Array, width: number, height: number): Path2D {
  const path = new Path2D();
  for (let y = 0; y <= height; y++) {
    let start = -1;
    for (let x = 0; x <= width; x++) {
      const above = y > 0 && x < width ? mask[(y - 1) * width + x] : 0;
      const below = y < height && x < width ? mask[y * width + x] : 0;
      if (above !== below) {
        if (start < 0) start = x;
      } else if (start >= 0) {
        path.moveTo(start, y);
        path.lineTo(x, y);
        start = -1;
      }
    }
  }
  for (let x = 0; x <= width; x++) {
    let start = -1;
    for (let y = 0; y <= height; y++) {
      const left = x > 0 && y < height ? mask[y * width + x - 1] : 0;
      const right = x < width && y < height ? mask[y * width + x] : 0;
      if (left !== right) {
        if (start < 0) start = y;
      } else if (start >= 0) {
        path.moveTo(x, start);
        path.lineTo(x, y);
        start = -1;
      }
    }
  }
  return path;
}

export function area(mask: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < mask.length; i++) sum += mask[i];
  return sum;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function chunk(kind: string, data: Uint8Array): Uint8Array {
  const out = new Uint8Array(12 + data.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) out[4 + i] = kind.charCodeAt(i);
  out.set(data, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < 8 + data.length; i++) crc = CRC[(crc ^ out[i]) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc >>> 0);
  return out;
}

/** Write grey values as an 8-bit PNG. */
export async function greyPng(values: Uint8Array, width: number, height: number): Promise<Blob> {
  const rows = new Uint8Array(height * (width + 1));
  for (let y = 0; y < height; y++) {
    rows.set(values.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head[8] = 8;
  const parts = [
    Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
    chunk("IHDR", head),
    chunk("IDAT", new Uint8Array(await new Response(packed).arrayBuffer())),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts as BlobPart[], { type: "image/png" });
}
