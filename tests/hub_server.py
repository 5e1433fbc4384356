"""A Hub on loopback: repositories, commits, large files and access tokens, in memory, over HTTP."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_tester": "tester", "hf_stranger": "stranger"}
LARGE = (".safetensors", ".bin", ".png")  # what goes the way of large files, as on the Hub
CARD = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    kind: str = "model"  # or "space"
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, list[str]] = field(default_factory=dict)  # branch -> its commits, oldest first

    def commit(self, ref: str, message: str, files: dict[str, bytes]) -> Commit:
        text = json.dumps(
            [len(self.commits), ref, message, {k: hashlib.sha1(v).hexdigest() for k, v in files.items()}]
        )
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), message, files)
        self.commits[commit.sha] = commit
        self.refs.setdefault(ref, []).append(commit.sha)
        return commit

    def find(self, revision: str) -> Commit | None:
        sha = self.refs[revision][-1] if revision in self.refs else revision
        return self.commits.get(sha)


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Hub:
    """What the server knows, and how it shall fail.

    Attributes:
        repos: by id.
        large: large files that were uploaded, by sha256.
        requests: method and path of every request.
        faults: regular expression on "METHOD path" -> status of the answer; 0 closes the connection without one.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, int] = {}
        self.lock = threading.RLock()
        self.url = ""

    def history(self, repo: str, ref: str = "main") -> list[Commit]:
        """The commits of a branch that somebody pushed, oldest first: without the one that creates a repository."""
        return [self.repos[repo].commits[sha] for sha in self.repos[repo].refs[ref][1:]]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return {k: v for k, v in self.repos[repo].find(revision).files.items() if k != ".gitattributes"}


@contextmanager
def running_hub():
    """A Hub on a free port of 127.0.0.1, for as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments) -> None:
        pass

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(request)
        for pattern, status in self.hub.faults.items():
            if re.search(pattern, request):
                if not status:
                    self.close_connection = True
                    return
                self.answer(status, b"the Hub has a fault", "text/plain")
                return
        try:
            for pattern, method in ROUTES:
                found = re.fullmatch(pattern, request)
                if found:
                    with self.hub.lock:
                        method(self, **found.groupdict())
                    return
            raise Refusal(404, f"no such page: {request}")
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal), **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            body = {"error": str(refusal), "errors": [{"message": str(refusal)}], "warnings": []}
            self.answer(refusal.status, body, **headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def answer(self, status: int, body, kind: str = "application/json", length: int | None = None, **headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": length or len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def user(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def need_user(self) -> str:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    def repo_of(self, repo: str, write: bool = False) -> Repo:
        found = self.hub.repos.get(repo)
        # A private repository does not exist for those who may not read it.
        kind = "space" if re.match(r"/(api/)?spaces/", unquote(self.path)) else "model"
        if found is None or found.kind != kind or (found.private and self.user != repo.partition("/")[0]):
            raise Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and self.need_user() != repo.partition("/")[0]:
            raise Refusal(403, f"You may not write to {repo}.")
        return found

    def commit_of(self, repo: str, revision: str) -> Commit:
        commit = self.repo_of(repo).find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self) -> None:
        self.answer(200, {"type": "user", "name": self.need_user(), "orgs": []})

    def create(self) -> None:
        user, wanted = self.need_user(), json.loads(self.body)
        owner = wanted.get("organization") or user
        repo = f"{owner}/{wanted['name']}"
        if repo in self.hub.repos:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
            return
        if owner != user:
            raise Refusal(403, f"You may not create repositories of {owner}.")
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        kind = wanted.get("type", "model")
        if kind == "space" and wanted.get("sdk") not in ("static", "gradio", "docker"):
            raise Refusal(400, "A Space needs an sdk.")
        self.hub.repos[repo] = Repo(private, kind)
        self.hub.repos[repo].commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def validate(self) -> None:
        block = CARD.match(json.loads(self.body)["content"])
        try:
            data = yaml.safe_load(block[2]) if block else {}
        except yaml.YAMLError as error:
            raise Refusal(400, f"Invalid YAML: {error}") from error
        if data.get("license", "mit") not in ("mit", "apache-2.0", "other"):
            raise Refusal(400, '"license" must be one of mit, apache-2.0, other')
        if not isinstance(data.get("language", ""), str | list) or not isinstance(data.get("tags", []), list):
            raise Refusal(400, "a field of the metadata has the wrong type")
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                assert result["task"]["type"]
                assert result["dataset"]["type"]
                assert all("type" in metric and "value" in metric for metric in result["metrics"])
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self.repo_of(repo, write=True)
        old = self.commit_of(repo, revision).files
        files = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) or file["size"] > 10**7 else "regular"
            oid = _oid(path, old[path]) if path in old else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        self.repo_of(repo, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                href = f"{self.hub.url}/large-files/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content does not have this sha256")
        self.hub.large[oid] = self.body
        self.answer(200, b"", "text/plain")

    def verify(self, oid: str) -> None:
        if oid not in self.hub.large:
            raise Refusal(404, "not uploaded")
        self.answer(200, {})

    def commit(self, repo: str, revision: str) -> None:
        found, parent = self.repo_of(repo, write=True), self.commit_of(repo, revision)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", parent.sha) != parent.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refusal(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"unknown operation {key}")
        if "create_pr" in self.query:
            revision = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in found.refs)}"
        commit = found.commit(revision, header["value"]["summary"], files)
        url = f"{self.hub.url}/{repo}/commit/{commit.sha}"
        pull_request = f"{self.hub.url}/{repo}/discussions/{revision.rpartition('/')[2]}"
        self.answer(200, {"success": True, "commitOid": commit.sha, "commitUrl": url, "pullRequestUrl": pull_request})

    def branch(self, repo: str, branch: str) -> None:
        found = self.repo_of(repo, write=True)
        if branch in found.refs:
            raise Refusal(409, "Reference already exists")
        found.refs[branch] = list(found.refs["main"])
        self.answer(200, {})

    def info(self, repo: str, revision: str = "main") -> None:
        commit = self.commit_of(repo, revision)
        config = json.loads(commit.files.get("config.json", b"{}"))
        card = CARD.match(commit.files.get("README.md", b"").decode())
        data = yaml.safe_load(card[2]) if card else {}
        siblings = [{"rfilename": path} for path in commit.files]
        body = {"_id": repo, "id": repo, "modelId": repo, "sha": commit.sha, "private": self.hub.repos[repo].private}
        body |= {"siblings": siblings, "tags": data.get("tags", []), "pipeline_tag": data.get("pipeline_tag")}
        self.answer(200, {**body, "config": {"model_type": config.get("model_type")}})

    def tree(self, repo: str, revision: str, **_) -> None:
        entries = []
        for path, content in self.commit_of(repo, revision).files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self.answer(200, entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_of(repo, revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
        content = commit.files[path]
        headers = {"ETag": f'"{_oid(path, content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        self.answer(200, content, "application/octet-stream", **headers)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_oid(content)


# A branch or commit; pull requests have slashes in their names.
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
API = r"/api/(?:models|spaces)"
ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST {API}/{REPO}/preupload/{REVISION}", _Handler.preupload),
    (rf"POST {API}/{REPO}/commit/{REVISION}", _Handler.commit),
    (rf"POST {API}/{REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /large-files/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (r"POST /large-files/(?P<oid>[0-9a-f]{64})/verify", _Handler.verify),
    (rf"GET {API}/{REPO}", _Handler.info),
    (rf"GET {API}/{REPO}/revision/{REVISION}", _Handler.info),
    (rf"GET {API}/{REPO}/tree/{REVISION}(?P<folder>/.*)?", _Handler.tree),
    (rf"(GET|HEAD) /(?:spaces/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
]
