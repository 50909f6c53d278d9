// How numbers and names are said.

const COLOURS: Record<string, string> = {
  left_lung: "#4db8f0",
  right_lung: "#f2a93b",
  lung: "#4db8f0",
  lungs: "#4db8f0",
  heart: "#f0729a",
};
// Told apart by people who see red and green alike, too (after Okabe and Ito).
const OTHERS = ["#2fc39a", "#e8dc4a", "#b99bff", "#ff8a5c", "#8bd450", "#5ad7e0"];

export function colourOf(structure: string | null, index: number): string {
  return (structure && COLOURS[structure]) || OTHERS[index % OTHERS.length];
}

export function named(structure: string | null, fallback: string): string {
  if (!structure) return fallback;
  const words = structure.replaceAll("_", " ");
  return words === "lung" ? "Lungs" : words[0].toUpperCase() + words.slice(1);
}

export function areaWords(pixels: number, spacing: [number, number] | null): string {
  if (spacing) return `${((pixels * spacing[0] * spacing[1]) / 100).toFixed(1)} cm²`;
  return pixels >= 10_000 ? `${Math.round(pixels / 1000)} k px` : `${pixels} px`;
}

export function valueWords(value: number, unit: string | undefined): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  const plain = value.toFixed(digits);
  return !unit || unit === "1" || unit === "ratio" ? plain : `${plain} ${unit.replace("mm2", "mm²").replace("cm2", "cm²")}`;
}

/** A level for colours and a word for people. */
export function trust(confidence: number | null): { word: string; level: "good" | "fair" | "poor" | "none" } {
  if (confidence === null) return { word: "Not calibrated", level: "none" };
  if (confidence >= 0.9) return { word: "High", level: "good" };
  if (confidence >= 0.8) return { word: "Moderate", level: "fair" };
  return { word: "Low: check the outline", level: "poor" };
}

export function sentence(words: string): string {
  return words ? words[0].toUpperCase() + words.slice(1).replace(/[.]?$/, ".") : "";
}
