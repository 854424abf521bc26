"""XTD10: captions of a thousand COCO images in eleven languages (Aggarwal & Kale, 2020, arXiv 2012.05107).

The format is that of github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10: ``XTD10/test_image_names.txt`` has a
name of an image on each line, and ``test_1kcaptions_LANGUAGE.txt`` the caption of the same line's image: in ``XTD10``
for es, it, ko, pl, ru, tr and zh, in ``MIC`` for de, en and fr, in ``STAIR`` for jp.
"""

from __future__ import annotations

from collections.abc import Iterator

from retrieval.folder import Folder
from retrieval.published.files import damaged, read_lines
from retrieval.published.query import Benchmark, BenchmarkQuery

_FOLDERS = {
    **dict.fromkeys(("en", "de", "fr"), "MIC"),
    **dict.fromkeys(("es", "it", "ko", "pl", "ru", "tr", "zh"), "XTD10"),
    "jp": "STAIR",
}


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the captions in a language."""
    images, name = read_lines(folder, "XTD10/test_image_names.txt"), f"{_FOLDERS[part]}/test_1kcaptions_{part}.txt"
    captions = read_lines(folder, name)
    if len(captions) != len(images):
        raise damaged(folder, name, f"it has {len(captions)} captions, and there are {len(images)} images")
    for image, caption in zip(images, captions, strict=True):
        yield BenchmarkQuery(image, (image,), text=caption)


BENCHMARK = Benchmark("xtd10", tuple(_FOLDERS), ("recall_at_1", "recall_at_5", "recall_at_10"), read)
