"""Kubeconfigs cut down to one context that needs nothing beside it."""

import base64

import pytest

from k8s.client.kubeconfig import standalone


def config(**user):
    return {
        "current-context": "a",
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in "ab"],
        "clusters": [
            {"name": "a", "cluster": {"server": "https://a", "certificate-authority": "ca.crt"}},
            {"name": "b", "cluster": {"server": "https://b"}},
        ],
        "users": [{"name": "a", "user": user}, {"name": "b", "user": {"token": "secret-of-b"}}],
    }


def test_files_are_taken_in_and_other_contexts_left_out(tmp_path):
    (tmp_path / "ca.crt").write_text("authority")
    (tmp_path / "token").write_text("word\n")
    alone = standalone(config(tokenFile="token"), tmp_path)
    assert alone["clusters"] == [
        {
            "name": "a",
            "cluster": {
                "server": "https://a",
                "certificate-authority-data": base64.b64encode(b"authority").decode(),
            },
        }
    ]
    assert alone["users"] == [{"name": "a", "user": {"token": "word"}}]
    assert "secret-of-b" not in str(alone)


def test_a_named_context_is_taken(tmp_path):
    assert standalone(config(), tmp_path, context="b")["users"] == [{"name": "b", "user": {"token": "secret-of-b"}}]


@pytest.mark.parametrize(
    ("user", "context", "words"),
    [
        ({"token": "t"}, "c", "no 'c' among its contexts"),
        ({"token": "t"}, None, "ca.crt"),
        ({"exec": {"command": "aws"}}, None, "service account"),
    ],
)
def test_what_would_not_work_elsewhere_is_refused(tmp_path, user, context, words):
    if "exec" in user:
        (tmp_path / "ca.crt").write_text("authority")
    with pytest.raises(ValueError, match=words):
        standalone(config(**user), tmp_path, context=context)
