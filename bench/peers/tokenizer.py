"""FastTokenizer against the `tokenizers` package and a pure-Python BPE: ids and speed, in one run, calls alternating.

    pip install tokenizers==0.23.3 gguf==0.19.0 regex
    cargo xtask bench tokenizer                                  # calls this script
    python bench/peers/tokenizer.py BENCH_BINARY CORPUS TOKENIZER...

CORPUS is a text file (made here when it does not exist: 1 MB of Python sources, English, and a walk through Unicode).
TOKENIZER is a `tokenizer.json`, compared with the `tokenizers` package, or a GGUF file with a byte-level vocabulary and
single digits (`smollm`), compared with the pure-Python BPE, which shares no code with ours, and with the `tokenizers` package given
the same vocabulary. A `unigram.json` that does not exist is trained here on the corpus (SentencePiece's way, 8,000 pieces).
"""

import pathlib
import statistics
import subprocess
import sys
import sysconfig
import time

ROUNDS = 7
TEXT_BYTES = 1_000


def make_corpus(path, size=1_000_000):
    """Half Python sources, a quarter their documentation as prose, a quarter characters of many scripts."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sources = "".join(file.read_text("utf-8", "ignore") for file in sorted(library.glob("*.py"))[:60])
    prose = "\n".join(line.strip() for line in sources.splitlines() if line.strip().startswith(("#", '"""')))
    blocks = [(0x20, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0x980), (0x3040, 0x3100), (0x4E00, 0x4F00),
              (0xAC00, 0xAD00), (0x1F300, 0x1F650)]
    scripts, state = [], 12345
    while len(scripts) < size // 4:
        state = (state * 1103515245 + 12345) % (1 << 31)
        start, end = blocks[(state >> 8) % len(blocks)]
        for _ in range(3 + state % 12):
            state = (state * 1103515245 + 12345) % (1 << 31)
            scripts.append(chr(start + (state >> 8) % (end - start)))
        scripts.append(" " if state % 7 else "\n")
    text = sources[: size // 2] + prose[: size // 4] + "".join(scripts)
    data = text.encode("utf-8", "ignore")[:size].decode("utf-8", "ignore")
    path.write_bytes(data.encode("utf-8"))


def make_unigram(path, corpus):
    """A Unigram vocabulary with SentencePiece's pre-tokenizer, trained on the corpus."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=8000, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(cut(corpus), trainer)
    tokenizer.save(str(path))


def byte_level(tokens, merges, special):
    """The `tokenizers` package's own byte-level BPE with SmolLM's split of digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids = {token: index for index, token in reversed(list(enumerate(tokens)))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges]))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.encode_special_tokens = True
    return tokenizer


def cut(corpus):
    """The same texts as the Rust side: cut at the first line break after each TEXT_BYTES."""
    texts, start, data = [], 0, corpus.encode("utf-8")
    position = data.find(b"\n")
    while position >= 0:
        if position + 1 - start >= TEXT_BYTES:
            texts.append(data[start : position + 1].decode("utf-8"))
            start = position + 1
        position = data.find(b"\n", position + 1)
    if start < len(data):
        texts.append(data[start:].decode("utf-8"))
    return texts


class PurePythonBpe:
    """Byte-level BPE as GPT-2's `encoder.py` does it; `digits` splits digits first. Words are kept in a cache unless it is turned off."""

    def __init__(self, tokens, merges, digits):
        import regex

        pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        self.words = regex.compile(pattern)
        self.digits = regex.compile(r"\p{N}|\P{N}+") if digits else None
        self.ids = {token: index for index, token in reversed(list(enumerate(tokens)))}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.alphabet = {byte: chr(byte) for byte in printable}
        self.alphabet.update({byte: chr(256 + index) for index, byte in enumerate(others)})
        self.cache = {}
        self.keeps = True

    def word(self, word):
        if word in self.cache:
            return self.cache[word]
        parts = [self.alphabet[byte] for byte in word.encode("utf-8")]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 60))
            if best not in self.ranks:
                break
            merged, index = [], 0
            while index < len(parts):
                if index + 1 < len(parts) and (parts[index], parts[index + 1]) == best:
                    merged.append(parts[index] + parts[index + 1])
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            parts = merged
        ids = [self.ids[part] for part in parts]
        if self.keeps:
            self.cache[word] = ids
        return ids

    def encode(self, text):
        pieces = self.digits.findall(text) if self.digits else [text]
        return [token for piece in pieces for word in self.words.findall(piece) for token in self.word(word)]

    def cold(self, text, keeps):
        """A call that starts with an empty cache of words, and keeps it so or not."""

        def call():
            self.cache.clear()
            self.keeps = keeps
            return self.encode(text)

        return call


class Ours:
    def __init__(self, binary):
        self.process = subprocess.Popen([binary, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write("\t".join(words) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def ids(self, path):
        self.ask("ids", str(path))
        data = path.read_bytes()
        return [int.from_bytes(data[index : index + 4], "little") for index in range(0, len(data), 4)]


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    binary, corpus_path, *paths = sys.argv[1:]
    corpus_path = pathlib.Path(corpus_path)
    if not corpus_path.exists():
        make_corpus(corpus_path)
    corpus = corpus_path.read_bytes().decode("utf-8")
    size, texts, ours = len(corpus.encode("utf-8")), cut(corpus), Ours(binary)
    scratch = corpus_path.with_suffix(".ids")
    print(f"{size} bytes, {len(texts)} texts, {ROUNDS} rounds: median (min-max)")
    for path in paths:
        if path.endswith("unigram.json") and not pathlib.Path(path).exists():
            make_unigram(path, corpus)
        print(pathlib.Path(path).name)
        print(f"  ours: loaded in {ours.ask('load', str(corpus_path), path) * 1e3:.0f} ms")
        found = ours.ids(scratch)
        pure = None
        if path.endswith(".json"):
            import tokenizers

            peer = tokenizers.Tokenizer.from_file(path)
            peer.no_padding()
            peer.no_truncation()
            peer.encode_special_tokens = True
        else:
            import gguf

            fields = gguf.GGUFReader(path).fields
            tokens, merges = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
            kinds = fields["tokenizer.ggml.token_type"].contents()
            pure = PurePythonBpe(tokens, merges, True)
            peer = byte_level(tokens, merges, [token for token, kind in zip(tokens, kinds) if kind == 3])
        expected = peer.encode(corpus, add_special_tokens=False).ids
        calls = {
            "tokenizers package, batch": ("batch", lambda: peer.encode_batch_fast(texts, add_special_tokens=False)),
            "tokenizers package, one text": ("one", lambda: peer.encode(corpus, add_special_tokens=False)),
        }
        if pure is not None:
            calls["pure Python, one text"] = ("one", pure.cold(corpus, True))
            calls["pure Python without a cache of words, one text"] = ("one", pure.cold(corpus, False))
            if pure.encode(corpus) != found:
                print("  ids of the pure-Python BPE: DIFFERENT")
            else:
                print("  ids of the pure-Python BPE: identical")
        same = sum(a == b for a, b in zip(found, expected))
        print(f"  ids: {'identical' if found == expected else f'DIFFERENT, {same} of {len(expected)} equal'} ({len(found)})")
        for name, (mode, call) in calls.items():
            rounds = ROUNDS if "Python" not in name else 3
            pairs = [(ours.ask("run", mode), timed(call)) for _ in range(rounds)]
            rate = spread([size / 1e6 / mine for mine, _ in pairs])
            print(f"  {mode}: ours {rate} MB/s, {spread([theirs / mine for mine, theirs in pairs])} times {name}")
    ours.process.stdin.close()


if __name__ == "__main__":
    main()
