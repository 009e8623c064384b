// Records anew what JavaScript makes of numbers and texts: reads json.json, gives the same cases with fresh answers.
// A case is the eight bytes of a double in hex, or a text; its answer is what JSON.stringify gives, null if none.
// Usage: node make_json.mjs json.json > fresh.json
import { readFileSync, writeSync } from "node:fs";

const number = (hex) => JSON.stringify(Buffer.from(hex, "hex").readDoubleBE(0));
const text = (source) => {
  try {
    return JSON.stringify(JSON.parse(source));
  } catch {
    return null;
  }
};

const { numbers, texts } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const list = (cases, answer) => cases.map(([one]) => JSON.stringify([one, answer(one)])).join(",\n");
writeSync(1, `{"numbers": [\n${list(numbers, number)}\n],\n"texts": [\n${list(texts, text)}\n]}\n`);
