/** The grid of results. Cards keep their element while the ranking changes, and glide to their new places. */

import { fill as fillBar, lengthOf, partsOf } from "./bars.js";
import { make, mayMove } from "./dom.js";
import { judges, showSign } from "./judging.js";
import { show } from "./pictures.js";
import { figure, movement, nameOf, sharesOf } from "./words.js";

const GLIDE = { duration: 650, easing: "cubic-bezier(.2, .75, .2, 1)", fill: "backwards" };
const ARRIVE = { duration: 450, easing: "ease-out", fill: "backwards" };

export class Grid {
  #list;
  #cards = new Map();
  #results = [];
  #hands;

  /**
   * @param {HTMLElement} list
   * @param {{open: (place: number) => void, judge: (result: object, wanted: boolean) => void}} hands `open` is called
   *   with the place of a result in the ranking, from 0; `judge` with a result that more is wanted like, or less
   */
  constructor(list, hands) {
    this.#list = list;
    this.#hands = hands;
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  clear() {
    this.#results = [];
    this.#cards.clear();
    this.#list.replaceChildren();
  }

  /**
   * Show results, best first.
   * @param {object[]} results
   * @param {{before: Map<string, number> | null, parts: [string, string], names: {all: string[]}, signOf: Function}} how
   *   `before` has the places of a ranking to compare with, `parts` what the two parts of a score are called, `names`
   *   the names of the pieces of evidence, and `signOf` says whether a piece is searched for or against.
   */
  show(results, { before, parts, names, signOf }) {
    this.#results = results;
    const full = Math.max(1e-9, ...results.map((result) => lengthOf(partsOf(result))));
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    this.#glide(() => {
      const cards = new Map();
      results.forEach((result, place) => {
        const card = this.#cards.get(result.id) ?? this.#card();
        cards.set(result.id, card);
        fill(card, result, place, { before, parts, full, names: names.all });
        this.#mark(card, result, place, signOf);
        if (this.#list.children[place] !== card) this.#list.insertBefore(card, this.#list.children[place] ?? null);
      });
      while (this.#list.children.length > results.length) this.#list.lastChild.remove();
      this.#cards = cards;
    });
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }

  focus(place) {
    this.#list.children[place]?.querySelector("button").focus();
  }

  #card() {
    const card = make(
      "li",
      { class: "card" },
      make(
        "button",
        { type: "button", "aria-keyshortcuts": "+ -" },
        make(
          "span",
          { class: "frame" },
          make("img", { loading: "lazy", decoding: "async", draggable: false, alt: "" }),
          make("span", { class: "moved" }),
        ),
        make("span", { class: "caption" }, make("span", { class: "name" }), make("span", { class: "score" })),
        make("span", { class: "bar" }),
      ),
      judges((wanted) => this.#hands.judge(this.#results[place()], wanted)),
    );
    const place = () => [...this.#list.children].indexOf(card);
    card.firstChild.addEventListener("click", () => this.#hands.open(place()));
    card.firstChild.addEventListener("keydown", ({ key }) => {
      if (key === "+" || key === "-") this.#hands.judge(this.#results[place()], key === "+");
    });
    return card;
  }

  /** Show anew which results are part of the search. */
  mark(signOf) {
    this.#results.forEach((result, place) => this.#mark(this.#list.children[place], result, place, signOf));
  }

  #mark(card, { id, ...result }, place, signOf) {
    showSign(card.querySelector(".judges"), signOf({ kind: "row", value: id, box: null }), `${place + 1}: ${nameOf(result)}`);
  }

  /** First, last, invert, play: what `change` moves starts from where it was on the screen. */
  #glide(change) {
    const was = new Map([...this.#list.children].map((card) => [card, card.getBoundingClientRect()]));
    change();
    if (!mayMove()) return;
    const cards = [...this.#list.children];
    for (const card of cards) for (const animation of card.getAnimations()) animation.cancel();
    const seen = (box) => box.bottom > 0 && box.top < innerHeight;
    const boxes = cards.map((card) => card.getBoundingClientRect());
    cards.forEach((card, place) => {
      const [from, to] = [was.get(card), boxes[place]];
      const delay = Math.min(place, 24) * 10;
      if (!from) {
        if (seen(to)) {
          const frames = [{ opacity: 0, transform: "scale(.94)" }, { opacity: 1, transform: "none" }];
          card.animate(frames, { ...ARRIVE, delay });
        }
        return;
      }
      const [x, y] = [from.left - to.left, from.top - to.top];
      if ((x || y) && (seen(from) || seen(to))) {
        const lift = y > 0 || (y === 0 && x > 0) ? 2 : 1; // what rises passes over what sinks
        card.animate(
          [{ transform: `translate(${x}px, ${y}px)`, zIndex: lift }, { transform: "none", zIndex: lift }],
          { ...GLIDE, delay },
        );
      }
    });
  }

  #walk(event) {
    const cards = [...this.#list.children];
    const here = cards.indexOf(event.target.closest("li"));
    const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const there = {
      ArrowRight: here + 1,
      ArrowLeft: here - 1,
      ArrowDown: here + columns,
      ArrowUp: here - columns,
      Home: 0,
      End: cards.length - 1,
    }[event.key];
    if (here < 0 || there === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (cards[there]) this.focus(there);
  }
}

function fill(card, result, place, { before, parts, full, names }) {
  const moved = before && movement(place, before.get(result.id), before.size);
  const name = nameOf(result);
  const image = card.querySelector("img");
  image.alt = name;
  show(image, result.thumbnail);
  card.querySelector(".name").textContent = name;
  card.querySelector(".score").textContent = figure(result.score, 2);
  const sign = card.querySelector(".moved");
  sign.textContent = moved?.sign ?? "";
  sign.classList.toggle("up", Boolean(moved?.up));
  fillBar(card.querySelector(".bar"), partsOf(result), full);
  const why = `${parts[0]} ${figure(result.text_part)}, ${parts[1]} ${figure(result.visual_part)}`;
  const shares = sharesOf(result, names);
  const button = card.firstChild;
  button.title = [result.path, `score ${figure(result.score)} = ${why}`, shares].filter(Boolean).join("\n");
  const spoken = [`${place + 1}: ${name}`, `score ${figure(result.score)}, of it ${why}`, shares, moved?.phrase];
  button.setAttribute("aria-label", spoken.filter(Boolean).join("; "));
}
