"""Executing a Dockerfile without Docker: stages get what they copy, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.run_dockerfile import Build, DeployError

TWO_STAGES = """
FROM python AS made
ARG WORD=default
WORKDIR /app
COPY hello.txt ./
RUN mkdir -p /opt/tool && echo "$WORD" > /opt/tool/word && cat hello.txt >> /opt/tool/word
FROM python AS final
COPY --from=made /opt/tool /opt/tool
USER 1000
WORKDIR /data
ENTRYPOINT ["cat"]
CMD ["/opt/tool/word"]
"""


def prepared(folder: Path, dockerfile: str, **build_args: str) -> Build:
    context = folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    (context / ".dockerignore").write_text("*\n!hello.txt\n", encoding="utf-8")
    (context / "hello.txt").write_text("hello\n", encoding="utf-8")
    (context / "secret.txt").write_text("secret\n", encoding="utf-8")
    return Build(context / "Dockerfile", folder / "root", build_args)


def test_a_stage_has_what_it_copies_from_another_and_no_more(tmp_path: Path) -> None:
    build = prepared(tmp_path, TWO_STAGES, WORD="given")
    build.start(build.build("final"))
    assert (tmp_path / "root/opt/tool/word").read_text() == "given\nhello\n"
    assert not (tmp_path / "root/app").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("COPY --from=made /opt/tool /opt/tool", "", "CMD failed"),
        ("/opt/tool /opt/tool", "/opt/tol /opt/tool", "there is no such file"),
        ("USER 1000", "", "runs as root"),
        ('CMD ["/opt/tool/word"]', "", "has no CMD"),
        ("hello.txt ./", "secret.txt ./", ".dockerignore leaves it out"),
        ("mkdir -p /opt/tool", "false", "failed"),
        ('ENTRYPOINT ["cat"]\nCMD ["/opt/tool/word"]', 'CMD ["touch", "/opt/tool/new"]',
         "writes to /opt/tool/new, outside"),
        ("WORKDIR /data", "VOLUME /data", "VOLUME is nothing that this script knows"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TWO_STAGES
    build = prepared(tmp_path, TWO_STAGES.replace(old, new))
    with pytest.raises(DeployError, match=said):
        build.start(build.build("final"))


def test_an_unknown_stage_and_a_used_folder_are_refused(tmp_path: Path) -> None:
    build = prepared(tmp_path, TWO_STAGES)
    with pytest.raises(DeployError, match="no stage 'serve', only made, final"):
        build.build("serve")
    with pytest.raises(DeployError, match="not empty"):
        Build(build.dockerfile, tmp_path, {})
