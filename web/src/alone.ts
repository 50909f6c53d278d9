// The page that needs no server.

import { get } from "./dom";
import { LocalEngine } from "./local/engine";
import { start } from "./main";

get("where").textContent = "They stay in this browser: nothing is sent anywhere.";
const card = document.createElement("a");
card.href = "model_card.md";
card.textContent = "Model card";
const licences = document.createElement("a");
licences.href = "licences.txt";
licences.textContent = "licences";
const sums = document.createElement("a");
sums.href = "SHA256SUMS";
sums.textContent = "checksums";
get("links").append(card, ", ", licences, ", ", sums, ".");
if ("serviceWorker" in navigator && location.protocol.startsWith("http") && isSecureContext) {
  void navigator.serviceWorker.register("offline.js");
}
void start(new LocalEngine());
