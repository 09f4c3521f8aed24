"""Training and encoding speed of the tokenizer beside the libraries it could have used, on the same text in one run.

python benchmarks/tokenizer.py TEXT_FILE_OR_FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import tokenizers

from bimo import Tokenizer
from bimo.core.config import DataSettings
from bimo.data import read_documents
from bimo.tokenizer import bpe

ROUNDS = 3


def seconds(work: Callable[[], object]) -> float:
    """Median time over the rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def train_peer(texts: list[str], vocab_size: int) -> None:
    """The same vocabulary with the trainer of Hugging Face tokenizers."""
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(bpe.PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    peer.train_from_iterator(texts, trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--vocab_size", type=int, default=4096)
    options = parser.parse_args()
    texts = [document.text for document in read_documents([options.path], DataSettings(), print)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = Tokenizer.train(texts, options.vocab_size)
    peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content))
    peer.encode_special_tokens = True
    same = all(
        ours.tolist() == theirs.ids
        for ours, theirs in zip(tokenizer.encode_batch(texts), peer.encode_batch_fast(texts), strict=True)
    )
    vocab_size = options.vocab_size
    training = seconds(lambda: Tokenizer.train(texts, vocab_size)), seconds(lambda: train_peer(texts, vocab_size))
    encoding = seconds(lambda: tokenizer.encode_batch(texts)), seconds(lambda: peer.encode_batch_fast(texts))
    n_tokens = sum(map(len, tokenizer.encode_batch(texts)))
    print(f"{size:.1f} MB, {vocab_size} ids, {size * 1e6 / n_tokens:.2f} bytes per token, ids equal: {same}\n")
    print("| | bimo | Hugging Face tokenizers | ratio |\n|---|---|---|---|")
    for name, (ours, theirs) in {"training": training, "encoding": encoding}.items():
        print(f"| {name} | {size / ours:.1f} MB/s | {size / theirs:.1f} MB/s | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
