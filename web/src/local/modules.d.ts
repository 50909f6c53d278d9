declare module "*decodewasm" {
  const bytes: Uint8Array;
  export default bytes;
}
declare module "*.worker" {
  const text: string;
  export default text;
}
declare module "@cornerstonejs/codec-charls/decodewasmjs" {
  const factory: (options: { wasmBinary: Uint8Array }) => Promise<{ JpegLSDecoder: new () => never }>;
  export default factory;
}
declare module "@cornerstonejs/codec-openjpeg/decodewasmjs" {
  const factory: (options: { wasmBinary: Uint8Array }) => Promise<{ J2KDecoder: new () => never }>;
  export default factory;
}
declare module "jpeg-lossless-decoder-js" {
  export class Decoder {
    decode(buffer: ArrayBuffer, offset: number, length: number, bytes: number): unknown;
  }
}
