/** The dialog in which a part of a picture is chosen: drawn by pointer or touch, or by the four edges' sliders. */

import { byId } from "./dom.js";
import { showPiece } from "./pictures.js";
import { share } from "./words.js";

const WHOLE = [0, 0, 1, 1];
const EDGES = ["left", "top", "right", "bottom"];
/** The smallest side of a part. */
const LEAST = 0.05;

const within = (value, low, high) => Math.min(high, Math.max(low, value));

export class Box {
  #dialog = byId("part");
  #stage = byId("part-stage");
  #box = WHOLE;
  #start = null;
  #chosen = () => {};

  constructor() {
    this.#stage.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.#stage.setPointerCapture(event.pointerId);
      this.#start = this.#place(event);
    });
    this.#stage.addEventListener("pointermove", (event) => this.#start && this.#draw(this.#place(event)));
    for (const name of ["pointerup", "pointercancel"]) {
      this.#stage.addEventListener(name, () => (this.#start = null));
    }
    EDGES.forEach((edge, i) => byId(`part-${edge}`).addEventListener("input", (event) => this.#pull(i, event.target)));
    byId("part-whole").addEventListener("click", () => this.#show(WHOLE));
    byId("part-cancel").addEventListener("click", () => this.#dialog.close());
    byId("part-form").addEventListener("submit", () => {
      this.#chosen(String(this.#box) === String(WHOLE) ? null : this.#box);
    });
  }

  /** Have a part of a piece's picture chosen: `chosen` is called with its box, or null for the whole of it. */
  open(piece, name, chosen) {
    this.#chosen = chosen;
    byId("part-title").textContent = `A part of ${name}`;
    const picture = byId("part-picture");
    picture.alt = name;
    showPiece(picture, { ...piece, box: null }, { large: true });
    this.#show(piece.box ?? WHOLE);
    this.#dialog.showModal();
  }

  /** Where a pointer is, as fractions of the picture. */
  #place(event) {
    const frame = this.#stage.getBoundingClientRect();
    return [
      within((event.clientX - frame.left) / frame.width, 0, 1),
      within((event.clientY - frame.top) / frame.height, 0, 1),
    ];
  }

  #draw([x, y]) {
    const [fromX, fromY] = this.#start;
    const box = [Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)];
    if (box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST) this.#show(box);
  }

  #pull(edge, slider) {
    const box = [...this.#box];
    const other = box[(edge + 2) % 4];
    const value = Number(slider.value) / 100;
    box[edge] = edge < 2 ? within(value, 0, other - LEAST) : within(value, other + LEAST, 1);
    this.#show(box);
  }

  #show(box) {
    this.#box = box.map((edge) => Math.round(1000 * edge) / 1000);
    EDGES.forEach((edge, i) => {
      this.#stage.style.setProperty(`--${edge}`, `${100 * this.#box[i]}%`);
      const slider = byId(`part-${edge}`);
      slider.value = 100 * this.#box[i];
      slider.setAttribute("aria-valuetext", share(this.#box[i]));
    });
  }
}
