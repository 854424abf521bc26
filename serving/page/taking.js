/** Pictures that the person hands over: refused in words, or sent to the service. */

import { megabytes } from "./words.js";
import { clearNotices, notice } from "./notices.js";
import { info } from "./service.js";
import { send } from "./uploads.js";

/** Send those files that are pictures: `take` is called with the key of each. Raises Fault. */
export async function sendAll(files, take) {
  clearNotices();
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return notice("error", "That is not a picture", "Choose a JPEG, PNG, WebP or GIF file.");
  const most = info?.limits.body_bytes;
  if (pictures.some((picture) => picture.size > most)) {
    const largest = Math.max(...pictures.map((picture) => picture.size));
    const text = `It has ${megabytes(largest)}; the service takes at most ${megabytes(most)}.`;
    return notice("error", "The picture is too large", `${text} Choose a smaller one.`);
  }
  const told = notice("hint", "One moment", "Your picture is being sent.");
  try {
    for (const picture of pictures) take(await send(picture));
  } finally {
    told.remove();
  }
}
