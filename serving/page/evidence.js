/** The pieces of evidence as chips: words or a picture, for or against, how much, and which part of it. */

import { AGAINST, FOR } from "./address.js";
import { colour } from "./bars.js";
import { icon, make } from "./dom.js";
import { showPiece } from "./pictures.js";
import { figure } from "./words.js";

const [LEAST, MOST, STEP] = [0.1, 2, 0.1];

export class Evidence {
  #list;
  #hands;
  #pieces = [];

  /**
   * @param {HTMLElement} list
   * @param {{change: Function, remove: Function, part: Function, empty: Function}} hands called with the number of a
   *   piece: `change` with what is new of it too, `part` to choose a part of its picture; `empty` when the last chip
   *   with the focus has gone.
   */
  constructor(list, hands) {
    this.#list = list;
    this.#hands = hands;
  }

  /**
   * @param {object[]} pieces
   * @param {{names: string[], first: number}} how what each piece is called, and the number of the first one's colour
   */
  show(pieces, { names, first }) {
    this.#pieces = pieces;
    const focused = [...this.#list.children].findIndex((chip) => chip.contains(document.activeElement));
    while (this.#list.children.length > pieces.length) this.#list.lastChild.remove();
    pieces.forEach((piece, i) => {
      const chip = this.#list.children[i] ?? this.#list.appendChild(this.#chip());
      colour(chip, first + i);
      fill(chip, piece, names[i]);
    });
    if (focused < pieces.length) return;
    const next = this.#list.lastChild?.querySelector(".remove");
    if (next) next.focus();
    else this.#hands.empty();
  }

  /** Say beside the chips which of them is at fault; null if none is. */
  mark(number) {
    [...this.#list.children].forEach((chip, i) => {
      chip.classList.toggle("faulty", i === number);
      for (const control of chip.querySelectorAll("button, input")) {
        if (i === number) control.setAttribute("aria-describedby", "evidence-fault");
        else control.removeAttribute("aria-describedby");
      }
    });
  }

  #chip() {
    const chip = make(
      "li",
      { class: "piece" },
      make("button", { type: "button", class: "sign" }),
      make("button", { type: "button", class: "part" }, make("img", { alt: "", draggable: false }), icon("part")),
      make("span", { class: "piece-name" }),
      make("input", { type: "text", class: "piece-words", spellcheck: false, "aria-label": "Words" }),
      make("input", { type: "range", step: STEP, min: LEAST }),
      make("output", { class: "amount", "aria-hidden": "true" }),
      make("button", { type: "button", class: "remove" }, "×"),
    );
    const number = () => [...this.#list.children].indexOf(chip);
    const piece = () => this.#pieces[number()];
    const slider = chip.querySelector("[type=range]");
    const words = chip.querySelector(".piece-words");
    const sign = () => Math.sign(piece().weight);
    chip.querySelector(".sign").addEventListener("click", () => {
      this.#hands.change(number(), { weight: piece().weight > 0 ? AGAINST : FOR });
    });
    chip.querySelector(".part").addEventListener("click", () => this.#hands.part(number()));
    slider.addEventListener("input", () => showWeight(chip, sign() * Number(slider.value)));
    slider.addEventListener("change", () => {
      this.#hands.change(number(), { weight: sign() * Number(slider.value) }, `weight ${number()}`);
    });
    words.addEventListener("change", () => {
      const value = words.value.trim();
      if (value) this.#hands.change(number(), { value });
      else this.#hands.remove(number());
    });
    words.addEventListener("input", () => (words.size = sizeOf(words.value)));
    chip.querySelector(".remove").addEventListener("click", () => this.#hands.remove(number()));
    return chip;
  }
}

const sizeOf = (text) => Math.min(24, Math.max(3, text.length));

function fill(chip, piece, name) {
  const against = piece.weight < 0;
  const [sign, part] = [chip.querySelector(".sign"), chip.querySelector(".part")];
  const [words, slider] = [chip.querySelector(".piece-words"), chip.querySelector("[type=range]")];
  const isText = piece.kind === "text";
  chip.classList.toggle("against", against);
  sign.textContent = against ? "−" : "+";
  sign.setAttribute("aria-label", `${name}: ${against ? "against" : "for"}`);
  sign.title = against ? "Search for it instead" : "Search against it instead";
  words.hidden = !isText;
  part.hidden = isText;
  const label = chip.querySelector(".piece-name");
  label.hidden = isText;
  label.textContent = isText ? "" : name;
  if (isText) {
    words.value = piece.value;
    words.size = sizeOf(piece.value);
  } else {
    showPiece(part.querySelector("img"), piece);
    const whole = piece.kind === "imagined"; // of what was imagined, the vectors are kept and not the picture
    part.disabled = whole;
    part.title = whole ? "" : "Search with a part of this picture";
    part.setAttribute("aria-label", whole ? name : `${piece.box ? "Part" : "All"} of ${name}: choose a part`);
  }
  slider.max = Math.max(MOST, Math.abs(piece.weight));
  slider.value = Math.abs(piece.weight);
  slider.setAttribute("aria-label", `Weight of ${name}`);
  chip.querySelector(".remove").setAttribute("aria-label", `Remove ${name}`);
  showWeight(chip, piece.weight);
}

function showWeight(chip, weight) {
  chip.querySelector(".amount").textContent = figure(Math.abs(weight), 1);
  const spoken = `${weight < 0 ? "against" : "for"}, ${figure(Math.abs(weight), 1)}`;
  chip.querySelector("[type=range]").setAttribute("aria-valuetext", spoken);
}
