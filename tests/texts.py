"""Small texts and the corpora made of them, for tests of data.py and of what it has from the harness."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import data
from data import DataConfig

REPOSITORY = Path(data.__file__).parent
SENTENCE = "In the beginning God created the heaven and the earth, and it's 1,189 chapters; naïve 文字 stay."
WORDS = SENTENCE.split()


def prose(n_words: int, seed: int = 0) -> str:
    """Random words from a short list, with the odd double space and empty line."""
    draw = np.random.default_rng(seed)
    gaps = draw.choice([" ", "\n", "  ", "\r\n\r\n"], n_words, p=[0.9, 0.05, 0.03, 0.02])
    return "".join(word + gap for word, gap in zip(draw.choice(WORDS, n_words), gaps, strict=True))


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def load_corpus(
    tmp_path: Path, corpus: str, seed: int = 0, batch_size: int = 4, seq_len: int = 16, **options
) -> data.Corpus:
    options = {"vocab_size": 300, "cache": str(tmp_path / "cache"), **options}
    return data.load(DataConfig(corpus, **options), seed, batch_size, seq_len)


def text_of(corpus: data.Corpus, split: str) -> str:
    return corpus.decode(corpus.tokens(split))


def python(script: str, **environment: str) -> str:
    """What a fresh Python process prints."""
    process = start_python(script, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def start_python(script: str, **environment: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env={**os.environ, **environment}, **pipes)
