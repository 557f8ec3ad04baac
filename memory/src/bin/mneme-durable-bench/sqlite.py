"""Durable single-row inserts into SQLite (WAL, synchronous=FULL) by several clients, each with its own connection.

Arguments: folder, clients, seconds, bytes of text. Prints: operations latency-p50-ms latency-p99-ms seconds
"""
import os
import sqlite3
import sys
import threading
import time

folder, clients, seconds, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
path = os.path.join(folder, "sqlite.db")


def connect():
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


setup = connect()
setup.execute("CREATE TABLE memory (id BLOB PRIMARY KEY, namespace TEXT, text TEXT, hash BLOB)")
setup.execute("CREATE INDEX by_hash ON memory (hash)")
setup.execute("CREATE TABLE ledger (op BLOB PRIMARY KEY, result BLOB)")
latencies = []
lock = threading.Lock()
begin = time.monotonic()
until = begin + seconds


def client(number):
    connection = connect()
    own = []
    count = 0
    while time.monotonic() < until:
        start = time.monotonic()
        key = number.to_bytes(8, "big") + count.to_bytes(8, "big")
        text = ("client %d memory %d " % (number, count)).ljust(size, "x")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO memory VALUES (?, 'bench', ?, ?)", (key, text, key * 2))
        connection.execute("INSERT INTO ledger VALUES (?, ?)", (key, key))
        connection.execute("COMMIT")
        own.append(time.monotonic() - start)
        count += 1
    with lock:
        latencies.extend(own)


threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
took = time.monotonic() - begin
latencies.sort()
at = lambda q: latencies[min(len(latencies) - 1, int(q * len(latencies)))] * 1e3
print(len(latencies), at(0.5), at(0.99), took)
