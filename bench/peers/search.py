"""Vector search side by side: ours against numpy, faiss, usearch, hnswlib, LanceDB and sqlite-vec, in one run.

    pip install numpy faiss-cpu usearch hnswlib lancedb sqlite-vec apsw
    cargo build --release -p mneme-bench --bench search
    python bench/peers/search.py --ours target/release/deps/search-HASH --rows 10000 --rows 100000

Vectors are clustered (a mixture of narrow clusters, like embeddings of texts; uniform noise would flatter no one). Every engine
answers every query in turn, so that a busy moment of the machine hits all alike. Printed per engine: recall@10 against exact f32,
p50 and p99 of one query, the same with a filter that lets one row in ten through, build time, and the memory that it took.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import numpy as np

DIMENSIONS = 384
K = 10
FILTER_PERCENT = 10


def clustered(rows: int, queries: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Rows around sqrt(rows) centres, which lie around a few dozen subjects; queries near rows, as questions are near their answers."""
    random = np.random.default_rng(seed)
    subjects = random.normal(size=(32, DIMENSIONS))
    centres = subjects[random.integers(0, 32, max(64, int(rows**0.5)))]
    centres = centres + 0.8 * random.normal(size=centres.shape)
    data = np.empty((rows, DIMENSIONS), np.float32)
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        of = random.zipf(1.3, count) % len(centres)
        data[start : start + count] = centres[of] + 0.7 * random.normal(size=(count, DIMENSIONS))
    asked = data[random.integers(0, rows, queries)] + 0.5 * random.normal(size=(queries, DIMENSIONS)).astype(np.float32)
    normal = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return normal(data), normal(asked)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class Ours:
    """Our view in another process; it times its own calls, the pipe is not counted."""

    filtered = True

    def __init__(self, binary: str, folder: str, precision: str, threads: int):
        command = [binary, "serve", f"{folder}/vectors", f"{folder}/queries", str(DIMENSIONS), precision, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        nanoseconds, self.bytes = map(int, self.process.stdout.readline().split())
        self.seconds = nanoseconds / 1e9

    def search(self, number: int, query: np.ndarray, percent: int) -> tuple[float, list[int]]:
        self.process.stdin.write(f"{K} {percent} {number}\n")
        self.process.stdin.flush()
        answer = [int(word) for word in self.process.stdout.readline().split()]
        return answer[0] / 1e6, answer[1:]


class Peer:
    """A library in this process. `build` returns a function from query and filter to row numbers."""

    def __init__(self, build, filtered: bool):
        before, started = resident(), time.perf_counter()
        self.call = build()
        self.seconds = time.perf_counter() - started
        self.bytes = resident() - before
        self.filtered = filtered

    def search(self, number: int, query: np.ndarray, percent: int) -> tuple[float, list[int]]:
        started = time.perf_counter()
        found = self.call(query, percent)
        return (time.perf_counter() - started) * 1e3, [int(row) for row in found]


def build_numpy(data: np.ndarray):
    copy = data.copy()
    allowed = np.arange(len(data)) % 100 < FILTER_PERCENT

    def call(query: np.ndarray, percent: int):
        scores = copy @ query
        if percent < 100:
            scores = np.where(allowed, scores, -2)
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best])]

    return call


def build_faiss(data: np.ndarray, kind: str, threads: int):
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(DIMENSIONS, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(data[: min(len(data), 100_000)])
    index.add(data)
    allowed = faiss.IDSelectorBatch(np.flatnonzero(np.arange(len(data)) % 100 < FILTER_PERCENT))
    parameters = faiss.SearchParametersHNSW if "HNSW" in kind else faiss.SearchParameters

    def call(query: np.ndarray, percent: int):
        chosen = None if percent == 100 else parameters(sel=allowed)
        return index.search(query[None], K, params=chosen)[1][0]

    return call


def build_usearch(data: np.ndarray, exact: bool, threads: int):
    from usearch.index import Index, MetricKind, search

    if exact:
        copy = data.copy()
        return lambda query, percent: search(copy, query, K, MetricKind.IP, exact=True, threads=threads).keys
    index = Index(ndim=DIMENSIONS, metric="ip")
    index.add(np.arange(len(data)), data, threads=threads)
    return lambda query, percent: index.search(query, K).keys


def build_hnswlib(data: np.ndarray, threads: int):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=DIMENSIONS)
    index.init_index(max_elements=len(data))
    index.set_num_threads(threads)
    index.add_items(data, np.arange(len(data)))
    allowed = lambda row: row % 100 < FILTER_PERCENT
    return lambda query, percent: index.knn_query(query, K, filter=None if percent == 100 else allowed)[0][0]


def build_lancedb(data: np.ndarray, folder: str, indexed: bool):
    import lancedb
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), DIMENSIONS)
    rows = np.arange(len(data))
    table = pa.table({"id": pa.array(rows), "part": pa.array(rows % 100), "vector": vectors})
    lance = lancedb.connect(folder).create_table("rows_ivf" if indexed else "rows", table)
    if indexed:
        lance.create_index(metric="dot")

    def call(query: np.ndarray, percent: int):
        search = lance.search(query).distance_type("dot").limit(K).select(["id", "_distance"])
        if percent < 100:
            search = search.where(f"part < {FILTER_PERCENT}", prefilter=True)
        return search.to_arrow()["id"].to_pylist()

    return call


def build_sqlite_vec(data: np.ndarray, folder: str):
    # Not the standard library's sqlite3: many Pythons are built without loadable extensions.
    import apsw
    import sqlite_vec

    database = apsw.Connection(f"{folder}/vectors.db")
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    database.execute(f"create virtual table rows using vec0(part integer, vector float[{DIMENSIONS}])")
    pairs = ((at, at % 100, row.tobytes()) for at, row in enumerate(data))
    with database:
        database.executemany("insert into rows(rowid, part, vector) values (?, ?, ?)", pairs)

    def call(query: np.ndarray, percent: int):
        where = "" if percent == 100 else f" and part < {FILTER_PERCENT}"
        sql = f"select rowid from rows where vector match ? and k = {K}{where} order by distance"
        return [row[0] for row in database.execute(sql, (query.tobytes(),))]

    return call


def engines(arguments, data: np.ndarray, folder: str):
    """Name and maker of each engine; exact ones first."""
    threads = arguments.threads
    yield "ours, int8 codes, exact scan", lambda: Ours(arguments.ours, folder, "codes", threads)
    yield "ours, int8 + f16 rerank in memory", lambda: Ours(arguments.ours, folder, "halves", threads)
    yield "ours, int8 + f16 rerank from a file", lambda: Ours(arguments.ours, folder, "file", threads)
    if arguments.before:
        yield "before: int8 codes", lambda: Ours(arguments.before, folder, "codes", threads)
        yield "before: int8 + f16 rerank in memory", lambda: Ours(arguments.before, folder, "halves", threads)
    yield "numpy, exact f32", lambda: Peer(lambda: build_numpy(data), True)
    yield "faiss Flat, exact f32", lambda: Peer(lambda: build_faiss(data, "Flat", threads), True)
    yield "faiss SQ8, exact scan", lambda: Peer(lambda: build_faiss(data, "SQ8", threads), True)
    yield "usearch exact f32", lambda: Peer(lambda: build_usearch(data, True, threads), False)
    yield "LanceDB flat", lambda: Peer(lambda: build_lancedb(data, folder, False), True)
    yield "sqlite-vec, exact f32", lambda: Peer(lambda: build_sqlite_vec(data, folder), True)
    if len(data) <= arguments.graphs_up_to:
        yield "usearch HNSW, default", lambda: Peer(lambda: build_usearch(data, False, threads), False)
        yield "hnswlib, default", lambda: Peer(lambda: build_hnswlib(data, threads), True)
        yield "faiss HNSW32, default", lambda: Peer(lambda: build_faiss(data, "HNSW32", threads), True)
    yield "LanceDB IVF_PQ, default", lambda: Peer(lambda: build_lancedb(data, folder, True), True)


def embedded(path: str, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """What search_embed.py wrote: its last rows are the queries."""
    with open(path, "rb") as file:
        head = json.loads(file.readline())
        vectors = np.frombuffer(file.read(), "<f4").reshape(head["rows"], head["dimensions"])
    return vectors[:-queries], vectors[-queries:]


def measure(arguments, rows: int) -> None:
    data, queries = embedded(arguments.vectors, arguments.queries) if arguments.vectors else clustered(rows, arguments.queries)
    rows = len(data)
    truth = {}
    allowed = np.arange(rows) % 100 < FILTER_PERCENT
    for percent in (100, FILTER_PERCENT):
        scores = queries @ data.T
        if percent < 100:
            scores[:, ~allowed] = -2
        truth[percent] = np.argpartition(-scores, K, axis=1)[:, :K]
    with tempfile.TemporaryDirectory() as folder:
        data.tofile(f"{folder}/vectors")
        queries.tofile(f"{folder}/queries")
        built = []
        for name, make in engines(arguments, data, folder):
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            try:
                built.append((name, make()))
            except Exception as error:  # a peer that is not installed or fails is a row of the table, not the end of it
                print(f"{name}: left out, {type(error).__name__}: {error}")
        table(arguments, rows, built, queries, truth)


def table(arguments, rows: int, built, queries: np.ndarray, truth) -> None:
    times = {(name, percent): [] for name, _ in built for percent in truth}
    hits = {key: [] for key in times}
    for number, query in enumerate(queries):
        for name, engine in built:
            for percent in truth:
                if percent < 100 and not engine.filtered:
                    continue
                milliseconds, found = engine.search(number, query, percent)
                times[name, percent].append(milliseconds)
                hits[name, percent].append(len(set(found) & set(truth[percent][number])) / K)
    load = os.getloadavg()[0]
    print(f"\n{rows:,} x {DIMENSIONS}, {len(queries)} queries, k = {K}, {arguments.threads} threads, load {load:.1f} on {os.cpu_count()} cores\n")
    print("| engine | recall@10 | p50 ms | p99 ms | filtered recall@10 | filtered p50 ms | build s | rows/s | memory MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, engine in built:
        cells = []
        for percent in truth:
            sample = times[name, percent]
            quantiles = np.percentile(sample, [50, 99]) if sample else None
            recall = f"{np.mean(hits[name, percent]):.4f}" if sample else "-"
            cells += [recall, f"{quantiles[0]:.2f}" if sample else "-"]
            cells += [f"{quantiles[1]:.2f}"] if percent == 100 else []
        print(f"| {name} | {' | '.join(cells)} | {engine.seconds:.2f} | {rows / engine.seconds:,.0f} | {engine.bytes / 1e6:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the binary of `cargo bench -p mneme-bench --bench search`")
    parser.add_argument("--before", help="the same binary of an earlier state, to be timed in the same run")
    parser.add_argument("--rows", type=int, action="append", help="may be given more than once")
    parser.add_argument("--vectors", help="vectors of texts from search_embed.py instead of clustered ones; the last --queries of them are asked")
    parser.add_argument("--only", action="append", help="only engines whose name has this in it; may be given more than once")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graphs-up-to", type=int, default=200_000, help="build graph indices up to this many rows (minutes beyond)")
    arguments = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(arguments.threads))
    for rows in [0] if arguments.vectors else arguments.rows or [10_000, 100_000]:
        measure(arguments, rows)


if __name__ == "__main__":
    main()
