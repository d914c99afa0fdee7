import math

import pytest

from harness.api import Defence, Guarantee
from harness.errors import PluginError
from harness.privacy.promised import promised

PLAIN = {"unit": "record", "epsilon": 1.0, "delta": 1e-5, "accountant": "rdp"}


def claiming(make):
    return type("Claims", (Defence,), {"name": "claims", "guarantee": lambda self, history: make()})()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": -3.0}, "epsilon = -3.0"),
        ({"epsilon": math.nan}, "epsilon = nan"),
        ({"delta": 7}, "delta = 7"),
        ({"delta": 1}, "delta = 1"),
        ({"unit": "banana"}, "unit = 'banana'"),
        ({"against": "nobody"}, "against = 'nobody'"),
        ({"neighbours": "friends"}, "neighbours = 'friends'"),
        ({"accountant": ""}, "accountant = ''"),
        ({"client_epsilon": {"0": -1.0}}, "client_epsilon.0 = -1.0"),
        (
            {"client_epsilon": {"0": 0.5, "7": 2.0}},
            "not one: epsilon is the largest over clients, and client 7 has 2",
        ),
    ],
)
def test_a_nonsense_guarantee_is_refused_in_the_defence_s_name(change, words):
    with pytest.raises(PluginError) as made:
        promised(claiming(lambda: Guarantee(**{**PLAIN, **change})), [{}])
    with pytest.raises(PluginError) as copied:
        promised(claiming(lambda: Guarantee(**PLAIN).model_copy(update=change)), [{}])
    for error in (made, copied):
        assert str(error.value).startswith("defence claims: its guarantee is not one:")
        assert words in str(error.value)
        assert "https" not in str(error.value)


def test_what_is_no_guarantee_at_all_is_named():
    with pytest.raises(PluginError, match="defence claims: guarantee returned dict, not a Guarantee or None"):
        promised(claiming(lambda: PLAIN), [{}])


def test_nothing_and_an_infinite_epsilon_stay_what_they_are():
    assert promised(claiming(lambda: None), []) is None
    given = Guarantee(**{**PLAIN, "epsilon": math.inf, "group_epsilon": math.inf, "holds": False})
    assert promised(claiming(lambda: given), [{}]) == given
