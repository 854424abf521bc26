/** The imagined images: empty frames while they are made, then pictures that can be left out and taken back. */

import { make } from "./dom.js";
import { judges, showSign } from "./judging.js";
import { show } from "./pictures.js";
import { share } from "./words.js";

export class Imagined {
  #list;
  #hands;

  /**
   * @param {HTMLElement} list
   * @param {{toggle: (index: number) => void, judge: (key: string, wanted: boolean) => void}} hands `toggle` is called
   *   with the index of an image that is to be left out, or taken back; `judge` with the key of one that more is wanted
   *   like, or less
   */
  constructor(list, hands) {
    this.#list = list;
    this.#hands = hands;
  }

  clear() {
    this.#list.replaceChildren();
  }

  /** Empty frames for images that are being made. */
  await(number) {
    const frames = Array.from({ length: number }, (_, i) => {
      const frame = make("li", { class: "awaited", "aria-hidden": "true" }, make("span", { class: "frame" }));
      frame.style.setProperty("--i", i);
      return frame;
    });
    this.#list.replaceChildren(...frames);
  }

  /** Show images; `dropped` has the indices of those left out, and `signOf` says which pieces of evidence there are. */
  show(images, dropped, signOf) {
    const known = new Map([...this.#list.children].map((item) => [item.dataset.url, item]));
    const items = images.map((image, i) => known.get(image.url) ?? this.#item(image, i));
    if (items.length !== this.#list.children.length || items.some((item, i) => this.#list.children[i] !== item)) {
      this.#list.replaceChildren(...items);
    }
    const most = Math.max(1e-9, ...images.map((image) => image.attention ?? 0));
    images.forEach((image, i) => {
      fill(items[i], image, i, { out: dropped.has(image.index), of: images.length, most });
      const sign = signOf({ kind: "imagined", value: keyOf(image), box: null });
      showSign(items[i].querySelector(".judges"), sign, `imagined picture ${i + 1}`);
    });
  }

  #item(image, i) {
    const item = make(
      "li",
      {},
      make(
        "button",
        { type: "button" },
        make("span", { class: "frame" }, make("img", { alt: "", draggable: false }), make("span", { class: "mark" })),
        make("span", { class: "attention" }, make("i")),
        make("span", { class: "share" }),
      ),
      judges((wanted) => this.#hands.judge(keyOf(image), wanted)),
    );
    item.dataset.url = image.url;
    item.style.setProperty("--i", i);
    item.firstChild.addEventListener("click", () => this.#hands.toggle(image.index));
    return item;
  }
}

/** The last two parts of an image's address, which name it as evidence. */
const keyOf = (image) => image.url.split("?")[0].split("/").slice(-2).join("/");

function fill(item, image, i, { out, of, most }) {
  const button = item.firstChild;
  const part = out || image.attention === null ? null : share(image.attention);
  const picture = item.querySelector("img");
  picture.alt = `Imagined picture ${i + 1}`;
  show(picture, image.url);
  item.style.setProperty("--share", out ? 0 : (image.attention ?? 0) / most);
  item.querySelector(".mark").textContent = out ? "↺" : "×";
  item.querySelector(".share").textContent = out ? "left out" : (part ?? "");
  button.setAttribute("aria-pressed", String(!out));
  button.setAttribute("aria-label", `Imagined picture ${i + 1} of ${of}, used${part ? `, share ${part}` : ""}`);
  button.title = out ? "Take this picture back" : "Leave this picture out";
}
