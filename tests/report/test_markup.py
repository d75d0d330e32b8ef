import html
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serrate.report.markup import Html, count, decimal, join, percent, table, tag


def test_children_are_escaped_unless_they_are_markup():
    assert tag("p", "<b>&", Html("<b>x</b>")) == "<p>&lt;b&gt;&amp;<b>x</b></p>"


def test_children_nest_and_none_is_left_out():
    assert tag("ul", [tag("li", n) for n in (1, 2)], None, []) == "<ul><li>1</li><li>2</li></ul>"


def test_attributes_are_escaped_and_named_as_in_html():
    written = tag("a", class_='"><script>', aria_label="x", viewBox="0 0 1 1", title=None)
    assert written == '<a class="&quot;&gt;&lt;script&gt;" aria-label="x" viewBox="0 0 1 1"></a>'


def test_an_attribute_may_be_called_name():
    assert tag("meta", name="viewport", content="w") == '<meta name="viewport" content="w">'


def test_coordinates_have_one_decimal():
    assert tag("rect", x=1.0, y=2.345) == '<rect x="1" y="2.3"/>'


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="object"):
        join([object()])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_a_parser(text: str):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.text, self.tags, self.attribute = "", [], None

        def handle_data(self, data):
            self.text += data

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.attribute = dict(attrs)["title"]

    reader = Reader()
    reader.feed(tag("p", text, title=text))
    reader.close()
    assert reader.tags == ["p"]
    assert reader.text == text
    # The parser reads an attribute's references itself.
    assert reader.attribute == html.unescape(html.escape(text))


def test_a_table_has_headers_both_ways_and_scrolls_by_itself():
    written = table(["Metric", tag("th", "b", scope="col", class_="text")], [["HR", "1"], ["MRR", tag("td", "2")]], "T")
    assert written.count('scope="col"') == 2
    assert written.count('scope="row"') == 2
    assert written.count("<td>") == 2
    assert '<div class="scroll" tabindex="0" role="region" aria-label="T"><table' in written


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count(1000209), "1,000,209"),
        (count(0.4), "0"),
        (count(None), "–"),
        (percent(0.624), "62 %"),
        (percent(0.004), "0.4 %"),
        (percent(0), "0 %"),
        (percent(1), "100 %"),
        (percent(math.nan), "–"),
        (decimal(0.28534), "0.2853"),
        (decimal(-0.004, sign=True), "−0.0040"),
        (decimal(0.004, sign=True), "+0.0040"),
        (decimal(12.34, digits=1), "12.3"),
        (decimal(math.inf), "–"),
    ],
)
def test_numbers_as_people_read_them(written: str, expected: str):
    assert written == expected
