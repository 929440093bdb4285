"""Write CLIP's tokenizer for the ``tokenizers`` library."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import tokenizers
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from tokenizers import Regex, decoders, models, pre_tokenizers

from rvos_deploy.graph_io import probe
from rvos_deploy.networks.pan2024.tokenizer import END_OF_TEXT, START_OF_TEXT

_MERGES = probe.END_OF_TEXT - 1 - 2 * 256
# CLIP's pattern for words in cleaned text, which is lower-case. Special tokens are not words: see
# tokenizer.py. CLIP's pattern ignores case, so the long s matches an s after an apostrophe. U+0345
# belongs to no word, because case folding makes it a letter in one direction.
_WORDS = r"'[s\x{017F}]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"


def write_tokenizer(file: Path) -> None:
    """Write CLIP's byte-pair tokenizer as open_clip ships it (49,408 tokens)."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges = [_pair(line) for line in lines[1 : _MERGES + 1]]
    alphabet = list(bytes_to_unicode().values())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = {word: index for index, word in enumerate([*words, START_OF_TEXT, END_OF_TEXT])}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    content = json.loads(tokenizer.to_str())
    # A merge as one string makes the file a fifth shorter.
    content["model"]["merges"] = [" ".join(pair) for pair in merges]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    file.write_text(text, encoding="utf-8")


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split()
    return left, right
