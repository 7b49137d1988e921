"""Bodies of requests: the file in a multipart body, whatever else is sent."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import multipart

from m2det_jax.serve.bodies import Memory, image_of
from m2det_jax.serve.problems import Problem

FORM = "multipart/form-data; boundary=limit"
HEAD = b'--limit\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\n\r\n'
NAMES = st.text(string.ascii_letters + string.digits + "'()+_,-./:=?", min_size=1, max_size=70)


@given(content=st.binary(min_size=1), boundary=NAMES, before=st.sampled_from([b"", b"text\r\n"]))
@settings(max_examples=100, deadline=None)
def test_a_file_comes_out_as_it_went_in(content, boundary, before):
    limit = boundary.encode()
    body = before + HEAD.replace(b"limit", limit) + content + b"\r\n--" + limit + b"--\r\nend"
    found = image_of(body, f'Multipart/Form-Data; charset=utf-8; boundary="{boundary}"')
    if b"\r\n--" + limit not in b"\r\n" + content:
        assert found == content


@given(
    body=st.lists(
        st.sampled_from(
            [
                HEAD,
                b"--limit",
                b"--",
                b"\r\n",
                b"\r\n\r\n",
                b"x",
                b"\0",
                b"Content-Disposition: ",
                b"form-data; ",
                b"name=\xff",
            ]
        )
    )
)
@settings(max_examples=300, deadline=None)  # fmt: skip
def test_any_body_is_refused_or_has_a_file(body):
    try:
        assert image_of(b"".join(body), FORM)
    except Problem as problem:
        assert problem.status == 400 and problem.remedy


@given(content_type=st.text(max_size=60), tail=st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_content_type(content_type, tail):
    for text in (content_type, f"multipart/form-data; boundary{tail}"):
        try:
            assert image_of(b"content", text) == b"content"
        except Problem as problem:
            assert problem.status == 400


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (multipart()[0], FORM, "0 files"),
        (multipart(b"a", b"b")[0], FORM, "2 files"),
        (multipart(b"")[0], FORM, "file in it is empty"),
        (multipart(b"a", end="")[0], FORM, "last boundary"),
        (multipart(b"a")[0], FORM + "s", "last boundary"),
        (multipart(b"a")[0], "multipart/form-data", "no boundary"),
        (multipart(*[b"a"] * 17)[0], FORM, "more than 16"),
        (multipart(*[b"a"] * 99)[0], FORM, "more than 16"),
        (HEAD.replace(b"filename", b"f") + b"0.3\r\n--limit--", FORM, "'a' is not a file"),
        (HEAD.replace(b"form-data", b"inline") + b"x\r\n--limit--", FORM, "not form-data"),
        (HEAD.replace(b"a.jpg", b"a" * 9000) + b"x\r\n--limit--", FORM, "very long"),
    ],
)
def test_what_is_wrong_with_a_multipart_body(body, content_type, said):
    with pytest.raises(Problem) as raised:
        image_of(body, content_type)
    assert raised.value.status == 400 and said in raised.value.error


def test_a_type_that_is_named_wrongly_is_no_matter():
    body = multipart(b"a")[0]
    for name in ("", "application/x-www-form-urlencoded", "image/png", "text/plain; boundary=x"):
        assert image_of(body, name) is body


def test_memory_is_bounded_and_freed():
    memory = Memory(10)
    with memory.account() as first, memory.account() as second:
        first.add(6)
        second.add(4)
        with pytest.raises(Problem) as raised:
            second.add(1)
        assert raised.value.status == 503 and raised.value.retry_after and memory.held == 10
    assert memory.held == 0
