"""How fast a trained decoder is served and written, on this machine: a server and its clients, and transformers.

python tests/bench_serve.py runs/base                 one client, then 32 at once: tokens/s, time to first token
python tests/bench_serve.py runs/base_qwen3 --decode  `generate` of ours and of transformers, exported, in turn

Prints one JSON object. Clients are processes of their own, on the same cores as the server.
"""

import argparse
import json
import multiprocessing
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
PROMPTS = ["In the beginning", "The king said", "Now after these days", "Moses"]


def client(address: str, number: int, requests: int, tokens: int) -> list[tuple[float, float, int]]:
    """(seconds to the first token, to the last, tokens) of streamed requests, one after the other."""
    found = []
    for request in range(requests):
        body = {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "max_tokens": tokens,
            "seed": 100 * number + request,
        }
        body |= {"stream": True, "temperature": 1.0, "stream_options": {"include_usage": True}}
        begun, first, written = time.perf_counter(), 0.0, 0
        connection = HTTPConnection(address, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        done = False
        for line in answer:
            first = first or time.perf_counter() - begun
            if line.startswith(b"data: {") and (usage := json.loads(line[6:]).get("usage")):
                written = usage["completion_tokens"]
            done |= line.startswith(b"data: [DONE]")
        if answer.status == 200 and done and written:
            found.append((first, time.perf_counter() - begun, written))
    return found


def load(address: str, clients: int, requests: int, tokens: int) -> dict:
    with multiprocessing.Pool(min(clients, 32)) as pool:
        pool.map(abs, range(clients))  # all processes are there before the clock starts
        begun = time.perf_counter()
        found = pool.starmap(client, [(address, i, requests, tokens) for i in range(clients)], chunksize=1)
        seconds = time.perf_counter() - begun
    served = [request for one in found for request in one]
    firsts = sorted(first for first, _, _ in served)
    return {
        "clients": clients,
        "tokens_per_second": sum(written for _, _, written in served) / seconds,
        "requests": clients * requests,
        "lost": clients * requests - len(served),
        "first_token_median_seconds": statistics.median(firsts),
        "first_token_p95_seconds": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


def serve(run_dir: str, options: argparse.Namespace) -> dict:
    command = [sys.executable, str(ROOT / "launch.py"), "--run-dir", run_dir, "serve", "--port", "0"]
    command += ["--rows", str(options.rows)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://(\S+) is a page", server.stdout.readline())[1]
        load(address, 2, 1, 8)
        rounds = [
            (load(address, 1, 3, options.tokens), load(address, options.clients, 2, options.tokens))
            for _ in range(options.rounds)
        ]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
    ratios = [many["tokens_per_second"] / one["tokens_per_second"] for one, many in rounds]
    return {"rows": options.rows, "ratios": ratios, "rounds": rounds, "exit_code": server.returncode}


def decode(run_dir: str, options: argparse.Namespace) -> dict:
    """Greedy text of both sides in turn, from prompts of one length, without an end."""
    import numpy as np
    import torch
    import transformers

    import zerotollm
    from zerotollm.decoding import sample
    from zerotollm.decoding.config import SamplingConfig
    from zerotollm.interop.huggingface import write_folder

    run = zerotollm.load(run_dir)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "exported"
        write_folder(out, run.params, run.model_config, run.tokenizer, "")
        net = transformers.AutoModelForCausalLM.from_pretrained(out)
    transformers.logging.set_verbosity_error()
    result = {}
    for rows in (1, 16):
        draw = np.random.default_rng(rows)
        prompts = draw.integers(4, run.tokenizer.vocab_size, (rows, 8)).astype(np.int32)
        new = min(options.tokens, run.model_config.max_length - 8)
        greedy = SamplingConfig(max_tokens=new, temperature=0.0)

        def ours(prompts=prompts, greedy=greedy):
            return np.stack(
                sample.generate(
                    run.params, run.model_config, list(prompts), greedy,
                    stop_ids=(), utf8=run.tokenizer.utf8,
                )
            )  # fmt: skip

        def theirs(prompts=prompts, new=new):
            ids = torch.tensor(prompts, dtype=torch.int64)
            config = transformers.GenerationConfig(
                max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            with torch.inference_mode():
                drawn = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            return drawn[:, prompts.shape[1] :].numpy()

        same, ratios, speeds = float((ours() == theirs()).mean()), [], []
        for _ in range(options.rounds):
            seconds = []
            for side in (ours, theirs):
                begun = time.perf_counter()
                side()
                seconds.append(time.perf_counter() - begun)
            speeds.append([rows * new / s for s in seconds])
            ratios.append(seconds[1] / seconds[0])
        result[f"{rows} rows"] = {"same_tokens": same, "ratios": ratios, "tokens_per_second": speeds}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps((decode if options.decode else serve)(options.run_dir, options), indent=1))


if __name__ == "__main__":
    main()
