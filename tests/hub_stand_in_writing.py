# SPDX-License-Identifier: Apache-2.0
"""What the stand-in for the Hub takes: repositories, branches, tags, uploads, commits and pull requests."""

import base64
import hashlib
import json

from hub_stand_in_repositories import LARGE, Repository, git_oid
from hub_stand_in_requests import NAME, Requests


class Writing(Requests):
    routes = {
        "POST /api/repos/create": "_create",
        "POST /api/validate-yaml": "_validate",
        rf"POST /api/models/{NAME}/branch/([^/]+)": "_branch",
        rf"POST /api/models/{NAME}/tag/([^/]+)": "_tag",
        rf"POST /api/models/{NAME}/preupload/([^/]+)": "_preupload",
        rf"POST /{NAME}\.git/info/lfs/objects/batch": "_batch",
        r"PUT /lfs/(\w+)": "_keep_large_file",
        "POST /lfs/verify": "_verify",
        rf"POST /api/models/{NAME}/commit/([^/]+)": "_commit",
    }

    def _may_write(self, name: str) -> bool:
        """Whether it may, or an answer that it may not."""
        if self.owner == name.split("/")[0]:
            return True
        said = f"You don't have the rights to write to {name}"
        if self.token:
            self.answer({"error": said}, 403, {"X-Error-Message": said})
        else:
            self.answer({"error": "Invalid username or password."}, 401)
        return False

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or self.owner}/{wanted['name']}"
        if not self._may_write(name):
            return None
        url = f"{self.server.endpoint}/{name}"
        if name in self.server.repositories:
            return self.answer({"error": "You already created this model repo", "url": url}, 409)
        self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
        return self.answer({"url": url})

    def _validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def _branch(self, name: str, branch: str) -> None:
        repository = self.repository(name)
        if repository is None or not self._may_write(name):
            return None
        if branch in repository.branches:
            return self.answer({"error": "Reference already exists"}, 409)
        repository.branches[branch] = list(repository.branches["main"])
        return self.answer({})

    def _tag(self, name: str, revision: str) -> None:
        commit, tag = self.commit_at(name, revision), json.loads(self.body)["tag"]
        if commit is None or not self._may_write(name):
            return None
        repository = self.server.repositories[name]
        if tag in repository.tags:
            return self.answer({"error": "Tag reference exists already"}, 409)
        repository.tags[tag] = commit.oid
        return self.answer({})

    def _preupload(self, name: str, revision: str) -> None:
        commit = self.commit_at(name, revision)
        if commit is None or not self._may_write_or_ask(name):
            return
        files = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE)
            content = commit.files.get(file["path"])
            oid = None if content is None else hashlib.sha256(content).hexdigest() if large else git_oid(content)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def _may_write_or_ask(self, name: str) -> bool:
        return bool(self.token and "create_pr" in self.query) or self._may_write(name)

    def _batch(self, _name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.server.large_files:
                links = {"upload": f"/lfs/{wanted['oid']}", "verify": "/lfs/verify"}
                wanted["actions"] = {key: {"href": self.server.endpoint + link} for key, link in links.items()}
            objects.append(wanted)
        self.answer({"transfer": "basic", "objects": objects})

    def _keep_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "The content has another hash"}, 400)
        self.server.large_files[oid] = self.body
        return self.answer({})

    def _verify(self) -> None:
        self.answer({})

    def _commit(self, name: str, branch: str) -> None:
        commit = self.commit_at(name, branch)
        if commit is None or not self._may_write_or_ask(name):
            return None
        repository = self.server.repositories[name]
        operations = [json.loads(line) for line in self.body.splitlines()]
        header = next(each["value"] for each in operations if each["key"] == "header")
        changes: dict[str, bytes | None] = {}
        for key, value in ((each["key"], each["value"]) for each in operations):
            if key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changes[value["path"]] = self.server.large_files[value["oid"]]
            elif key == "deletedFile":
                changes[value["path"]] = None
        answer = {}
        parent = header.get("parentCommit")
        if "create_pr" in self.query:
            branch = repository.open_pull_request(commit)
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{name}/discussions/{branch.rsplit('/', 1)[1]}"
        elif branch not in repository.branches:
            return self.answer({"error": "Not a branch"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif parent not in (None, commit.oid):
            return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        message = "\n\n".join(filter(None, (header["summary"], header["description"])))
        oid = repository.commit(message, changes, branch).oid
        return self.answer({**answer, "commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})
