"""Fine-tuning on banking77 from MiniLM: ours and torch/transformers, one recipe on CPUs; google's padded recipe for
speed.

    python benchmarks/finetune_banking77.py accuracy --engines ours,torch --data <folder with train.csv, test.csv> \
        --model <MiniLM folder> --torch-python <python with torch and transformers> --cpus 0,1
    python benchmarks/finetune_banking77.py speed --data ... --model ... --torch-python ... --cpus 0,1

`accuracy` trains every seed to the end and measures the test rows after the last epoch; no epoch is chosen by them.
`speed` times some steps of every engine on one thread, turn by turn: rows trained on per second of CPU time (not of the
clock: other work on the machine would be in it), the best round of each. Each worker is a process of its own.
Both add to one result file.
"""

import argparse
import csv
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

RECIPE = {
    "epochs": 4,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "bias_correction": True,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "dropout": 0.0,
    "classifier_dropout": 0.1,
    "label_smoothing": 0.1,
    "max_length": 128,
}
GOOGLE_STEPS = 4
STEPS = 24  # of a speed round, after two that are not counted
ROUNDS = 3


def rows_of(path):
    """(text, label) of one CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def run_ours(arguments):
    """One seed of ftbert.finetune."""
    import tensorflow

    import ftbert.finetune

    with tempfile.TemporaryDirectory() as folder:
        result = ftbert.finetune.finetune(
            os.path.join(arguments.data, "train.csv"),
            os.path.join(arguments.data, "test.csv"),
            pretrained=arguments.model,
            output=os.path.join(folder, "model"),
            label_column="category",
            seed=arguments.seed,
            threads=arguments.threads,
            device="cpu",
            progress=False,
            tensorboard=False,
            report=False,
            **RECIPE,
        )
    history = result.history
    return {
        "test_accuracy": [record["accuracy"] for record in history],
        "version": "tensorflow " + tensorflow.__version__,
    }


def time_ours(arguments):
    """Steps of our training graph, as `finetune` runs them."""
    import tensorflow

    from ftbert.checkpoint import load_model_folder
    from ftbert.training.batches import epoch_plan
    from ftbert.training.graph import Schedule, TrainingGraph
    from ftbert.training.machine import find_machine

    (train, _), num_labels = encode(arguments)
    folder = load_model_folder(arguments.model)
    config = dataclasses.replace(
        folder.config, hidden_dropout_prob=RECIPE["dropout"], attention_probs_dropout_prob=RECIPE["dropout"]
    )
    machine = find_machine("cpu", arguments.threads)
    schedule = Schedule(RECIPE["learning_rate"], 1252, 125, bias_correction=RECIPE["bias_correction"])
    graph = TrainingGraph(config, num_labels, False, schedule, machine, arguments.seed, label_smoothing=0.1)
    graph.assign(folder.weights())
    plan = epoch_plan(train.lengths, RECIPE["batch_size"], arguments.seed, 0)
    for chosen in plan[:2]:
        graph.train_step([train.batch(chosen)])
    begun = time.process_time()
    rows = sum(len(chosen) for chosen in plan[2 : 2 + STEPS])
    for chosen in plan[2 : 2 + STEPS]:
        graph.train_step([train.batch(chosen)])
    return {
        "examples_per_cpu_second": rows / (time.process_time() - begun),
        "version": "tensorflow " + tensorflow.__version__,
    }


def encode(arguments):
    """(train, test) EncodedSets by our tokenizer, which gives BERT's ids."""
    from ftbert.tokenization import Tokenizer
    from ftbert.training.batches import EncodedSet

    tokenizer = Tokenizer.from_folder(arguments.model)
    data = [rows_of(os.path.join(arguments.data, name)) for name in ("train.csv", "test.csv")]
    labels = sorted({label for _, label in data[0]})
    place = {label: index for index, label in enumerate(labels)}
    sets = [
        EncodedSet(
            tokenizer.encode([text for text, _ in rows], RECIPE["max_length"], "head").batch,
            np.array([place[label] for _, label in rows], np.int32),
        )
        for rows in data
    ]
    return sets, len(labels)


def run_torch(arguments, timed_steps=None):
    """One seed of the same recipe: transformers' BertModel, torch's AdamW, the very same batches."""
    import torch
    import transformers

    from ftbert.training.batches import epoch_plan, in_order

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    (train, test), num_labels = encode(arguments)
    net = transformers.BertModel.from_pretrained(
        arguments.model,
        hidden_dropout_prob=RECIPE["dropout"],
        attention_probs_dropout_prob=RECIPE["dropout"],
    )
    net.train()
    head = torch.nn.Linear(net.config.hidden_size, num_labels)
    torch.nn.init.trunc_normal_(head.weight, std=0.02, a=-0.04, b=0.04)
    torch.nn.init.zeros_(head.bias)
    groups = []
    for name, parameter in net.named_parameters():
        decay = 0.0 if "LayerNorm" in name or name.endswith("bias") else RECIPE["weight_decay"]
        groups.append({"params": [parameter], "lr": RECIPE["learning_rate"], "weight_decay": decay})
    groups.append({"params": [head.weight], "lr": RECIPE["learning_rate"], "weight_decay": RECIPE["weight_decay"]})
    groups.append({"params": [head.bias], "lr": RECIPE["learning_rate"], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, eps=1e-6)
    parameters = [group["params"][0] for group in groups]
    per_epoch = (len(train.lengths) + RECIPE["batch_size"] - 1) // RECIPE["batch_size"]
    total = per_epoch * RECIPE["epochs"]
    warmup = int(round(total * RECIPE["warmup"]))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / warmup if step < warmup else max(0.0, 1 - step / total)
    )

    def forward(batch):
        output = net(
            input_ids=torch.from_numpy(batch.token_ids.astype(np.int64)),
            attention_mask=torch.from_numpy(batch.mask.astype(np.int64)),
        )
        return torch.nn.functional.dropout(output.pooler_output, RECIPE["classifier_dropout"], net.training)

    def update(batch):
        loss = torch.nn.functional.cross_entropy(
            head(forward(batch)),
            torch.from_numpy(batch.labels.astype(np.int64)),
            label_smoothing=RECIPE["label_smoothing"],
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, RECIPE["clip_norm"])
        optimizer.step()
        schedule.step()

    version = "torch %s, transformers %s" % (torch.__version__, transformers.__version__)
    if timed_steps:
        plan = epoch_plan(train.lengths, RECIPE["batch_size"], arguments.seed, 0)
        for chosen in plan[:2]:
            update(train.batch(chosen))
        begun = time.process_time()
        for chosen in plan[2 : 2 + timed_steps]:
            update(train.batch(chosen))
        rows = sum(len(chosen) for chosen in plan[2 : 2 + timed_steps])
        return {"examples_per_cpu_second": rows / (time.process_time() - begun), "version": version}
    accuracy = []
    for epoch in range(RECIPE["epochs"]):
        net.train()
        for chosen in epoch_plan(train.lengths, RECIPE["batch_size"], arguments.seed, epoch):
            update(train.batch(chosen))
        net.eval()
        hits = 0
        with torch.no_grad():
            for chosen in in_order(test.lengths, 64):
                batch = test.batch(chosen)
                hits += int((head(forward(batch)).argmax(-1).numpy() == batch.labels).sum())
        accuracy.append(hits / len(test.lengths))
    return {
        "test_accuracy": accuracy,
        "version": version,
    }


def time_google(arguments):
    """Every row padded to 128, every layer over every token, AdamW of plain operations, as google's code does."""
    from tensorflow.compat import v1 as tf

    from ftbert import modeling
    from ftbert.checkpoint import load_model_folder
    from ftbert.training.optimization import learning_rate_at

    (train, _), num_labels = encode(arguments)
    folder = load_model_folder(arguments.model)
    length = RECIPE["max_length"]
    with tf.Graph().as_default():
        tf.set_random_seed(arguments.seed)
        ids, mask, segments = (tf.placeholder(tf.int32, [None, length]) for _ in range(3))
        labels = tf.placeholder(tf.int32, [None])
        config = dataclasses.replace(
            folder.config, hidden_dropout_prob=RECIPE["dropout"], attention_probs_dropout_prob=RECIPE["dropout"]
        )
        model = modeling.BertModel(config, True, ids, mask, segments)
        logits = modeling.apply_classifier(model, num_labels, True)
        loss = tf.reduce_mean(modeling.classification_loss(logits, labels))
        variables = tf.trainable_variables()
        step = tf.train.get_or_create_global_step()
        rate = learning_rate_at(step, RECIPE["learning_rate"], 1252, 125)
        # google's code lets the word embeddings' sparse gradient become dense where it meets the moments.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        updates = []
        for variable, gradient in zip(variables, gradients):
            first, second = (
                tf.get_variable(variable.op.name + suffix, variable.shape, initializer=tf.zeros_initializer(),
                                trainable=False, use_resource=True)
                for suffix in ("/adam_m", "/adam_v")
            )  # fmt: skip
            next_first = 0.9 * first + 0.1 * gradient
            next_second = 0.999 * second + 0.001 * tf.square(gradient)
            update = next_first / (tf.sqrt(next_second) + 1e-6)
            if "LayerNorm" not in variable.op.name and not variable.op.name.endswith("bias"):
                update += RECIPE["weight_decay"] * variable
            updates += [variable.assign(variable - rate * update), first.assign(next_first), second.assign(next_second)]
        train_op = tf.group(step.assign_add(1), *updates)
        session_config = tf.ConfigProto(
            intra_op_parallelism_threads=arguments.threads, inter_op_parallelism_threads=arguments.threads
        )
        with tf.Session(config=session_config) as session:
            session.run(tf.global_variables_initializer())
            modeling.assign_weights(session, model.variables, folder.weights())
            order = np.random.RandomState(arguments.seed).permutation(len(train.lengths))
            seconds = []
            for index in range(GOOGLE_STEPS + 2):
                chosen = order[index * 32 : index * 32 + 32]
                begun = time.process_time()
                batch = train.batch(chosen)
                padded = [np.pad(array, ((0, 0), (0, length - array.shape[1])), "constant") for array in batch[:3]]
                session.run(train_op, {ids: padded[0], mask: padded[1], segments: padded[2], labels: batch.labels})
                seconds.append(time.process_time() - begun)
    return {
        "examples_per_cpu_second": 32 * GOOGLE_STEPS / sum(seconds[2:]),
        "version": "tensorflow " + tf.__version__,
    }


WORKERS = {
    "accuracy": {"ours": run_ours, "torch": run_torch},
    "speed": {
        "ours": time_ours,
        "torch": lambda arguments: run_torch(arguments, STEPS),
        "google_padded": time_google,
    },
}


def worker(name, seed, arguments):
    """Runs one worker bound to the CPUs; returns its record."""
    python = arguments.torch_python if name == "torch" else sys.executable
    command = [python, os.path.abspath(__file__), arguments.what, "--worker", name, "--seed", str(seed)]
    command += ["--data", arguments.data, "--model", arguments.model, "--threads", str(arguments.threads)]
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3", OMP_NUM_THREADS=str(arguments.threads))
    done = subprocess.run(
        ["taskset", "-c", arguments.cpus] + command, env=environment, stdout=subprocess.PIPE, universal_newlines=True
    )
    if done.returncode:
        raise SystemExit("%s, seed %d: failed with %d" % (name, seed, done.returncode))
    record = json.loads(done.stdout.strip().splitlines()[-1])
    record["machine"] = {"cpu": cpu_name(), "threads": arguments.threads}
    print(name, seed, json.dumps(record), flush=True)
    return record


def cpu_name():
    """The processor as the kernel names it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read_result(path):
    """What other calls have added."""
    if not os.path.exists(path):
        return {"accuracy": {}, "speed": {}}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def summarize(result):
    """Adds means, spreads and ratios to the records."""
    result["what"] = (
        "banking77: 10,003 train and 3,080 test rows, from MiniLM (6 layers, hidden 384), full training set"
    )
    result["recipe"] = RECIPE
    result["date"] = time.strftime("%Y-%m-%d")
    summary = {}
    for name, records in result["accuracy"].items():
        last = [record["test_accuracy"][-1] for record in records.values()]
        summary[name] = {
            "seeds": len(last),
            "test_accuracy_mean": round(float(np.mean(last)), 5),
            "test_accuracy_lowest": round(min(last), 5),
            "test_accuracy_highest": round(max(last), 5),
        }
    speed = {
        name: max(record["examples_per_cpu_second"] for record in records) for name, records in result["speed"].items()
    }
    for name, value in speed.items():
        summary.setdefault(name, {})["examples_per_cpu_second"] = round(value, 1)
    for other in ("torch", "google_padded"):
        if "ours" in speed and other in speed:
            summary["ours"]["speed_over_" + other] = round(speed["ours"] / speed[other], 2)
    result["summary"] = summary


def write_result(path, result):
    """Beside its place, then renamed."""
    with open(path + ".writing", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    os.replace(path + ".writing", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=sorted(WORKERS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engines", default="")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--threads", type=int, default=0, help="2 for accuracy and 1 for speed unless told")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker")
    parser.add_argument("--output", default=os.path.join(HERE, "results", "finetune_banking77.json"))
    arguments = parser.parse_args()
    known = WORKERS[arguments.what]
    arguments.threads = arguments.threads or (1 if arguments.what == "speed" else 2)
    if arguments.worker:
        print(json.dumps(known[arguments.worker](arguments)))
        return
    engines = arguments.engines.split(",") if arguments.engines else sorted(known)
    unknown = [name for name in engines if name not in known]
    if unknown:
        parser.error("engines: expected some of %s, got %s" % (sorted(known), unknown))
    if arguments.what == "accuracy":
        for seed in arguments.seeds.split(","):
            for name in engines:
                record = worker(name, int(seed), arguments)
                result = read_result(arguments.output)
                result["accuracy"].setdefault(name, {})[seed] = record
                summarize(result)
                write_result(arguments.output, result)
    else:
        rounds = {name: [] for name in engines}
        for number in range(ROUNDS):
            for name in engines:
                record = worker(name, number, arguments)
                record["load"] = os.getloadavg()[0]
                rounds[name].append(record)
        result = read_result(arguments.output)
        result["speed"].update(rounds)
        summarize(result)
        write_result(arguments.output, result)
    print(json.dumps(read_result(arguments.output)["summary"], indent=2))


if __name__ == "__main__":
    main()
