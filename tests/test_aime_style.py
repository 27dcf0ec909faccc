import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import product
from math import comb, isqrt

import numpy
import pytest

from r1lite.plugins import load_module
from r1lite.problems import load_problems

aime = load_module("data/aime_style.py")

ROOTS = "Let $r$, $s$ and $t$ be the complex roots, listed with multiplicity, of $x^3 @x^2 @x @$. "
COPRIME = "where $m$ and $n$ are relatively prime positive integers. Find $m + n$."
RATIO = r"$\frac{m}{n}$, " + COPRIME

# Every answer is worked out again below from the numbers in the problem's text alone, by search, by simulation or by
# another theorem than the generator's.


def power_sum(a, i, b, j, modulus):
    first = second = 1
    for _ in range(i):
        first = first * a % modulus
    for _ in range(j):
        second = second * b % modulus
    return (first + second) % modulus


def exactly_one(most, a, b):
    return sum((n % a == 0) != (n % b == 0) for n in range(1, most + 1))


def arithmetic(i, u, j, v, k):
    return u + Fraction(v - u, j - i) * (k - i)


def sum_and_product(total, product, k):
    x = (total + (total**2 - 4 * product) ** 0.5) / 2  # complex, and thereby wrong, if the roots are not real
    y = total - x
    return near(x * x + k * x * y + y * y)


def box(edges, diagonal):
    areas = set()
    for a in range(1, edges // 4):
        for b in range(a, edges // 4 - a):
            c = edges // 4 - a - b
            if a * a + b * b + c * c == diagonal:
                areas.add(2 * (a * b + b * c + c * a))
    (area,) = areas
    return area


def chinese_remainders(a, p, b, q, c, r):
    whole = p * q * r
    return sum(rest * whole // m * pow(whole // m, -1, m) for rest, m in ((a, p), (b, q), (c, r))) % whole


def digit_sums(least, most, k):
    @cache
    def free(length, rest):
        """How many strings of so many digits have a digit sum that leaves this remainder."""
        return sum(free(length - 1, (rest - d) % k) for d in range(10)) if length else int(rest == 0)

    def below(bound):
        digits = [int(d) for d in str(bound)]
        return sum(
            free(len(digits) - i - 1, (-sum(digits[:i]) - d) % k) for i in range(len(digits)) for d in range(digits[i])
        )

    return below(most + 1) - below(least)


def divisible_product(a, b, k):
    fitting = sum(x * y % k == 0 for x in range(1, a + 1) for y in range(1, b + 1))
    return terms(Fraction(fitting, a * b))


def first_order(first, factor, shift, index, modulus):
    power = factor ** (index - 1)
    return (power * first + shift * (power - 1) // (factor - 1)) % modulus


def pairwise_sums(a, b, c):
    r, s, t = numpy.roots([1, a, b, c])
    return near((r + s) * (s + t) * (t + r))


def inside_triangle(a, b, c, d, e, f):
    corners = [(a, b), (c, d), (e, f)]

    def inside(x, y):
        sides = set()
        for (px, py), (qx, qy) in zip(corners, corners[1:] + corners[:1], strict=True):
            cross = (qx - px) * (y - py) - (qy - py) * (x - px)
            sides.add((cross > 0) - (cross < 0))
        return len(sides) == 1 and 0 not in sides

    return sum(inside(x, y) for x in range(-20, 21) for y in range(-20, 21))


def divisors_without_squares(p, i, q, j, r, k, factor):
    divisors = [p**x * q**y * r**z for x, y, z in product(range(i + 1), range(j + 1), range(k + 1))]
    return sum(d for d in divisors if d % factor == 0 and isqrt(d) ** 2 != d) % 1000


def avoiding_paths(a, b, p, q, u, v):
    ways = Counter({(0, 0): 1})
    for x, y in product(range(a + 1), range(b + 1)):
        ways[x, y] += ways[x - 1, y] + ways[x, y - 1]
        if (x, y) in ((p, q), (u, v)):
            ways[x, y] = 0
    return ways[a, b] % 1000


def draws_until(red, white, wanted):
    balls = red + white
    last = {n: comb(n - 1, wanted - 1) * comb(balls - n, red - wanted) for n in range(wanted, balls + 1)}
    assert sum(last.values()) == comb(balls, red)
    return terms(Fraction(sum(n * ways for n, ways in last.items()), comb(balls, red)))


def product_of_radii(a, b, c):
    x, height2 = corner(a, b, c)
    centre2 = (x * x + height2 - a * x) ** 2 / (4 * height2)  # the circumcentre's distance from BC, squared
    circumradius2 = Fraction(a * a, 4) + centre2
    inradius2 = a * a * height2 / (a + b + c) ** 2
    square = circumradius2 * inradius2
    root = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    assert root * root == square
    return terms(root)


def power_sums_of_roots(a, b, c, *powers):
    (power,) = set(powers)
    companion = numpy.array([[-a, -b, -c], [1, 0, 0], [0, 1, 0]], dtype=object)
    total = numpy.trace(numpy.linalg.matrix_power(companion, power))
    assert total > 0
    return total % 1000


def floor_sum(most, a, b):
    """The lattice points under the line, row by row instead of column by column."""
    return sum(most - -(-b * row // a) + 1 for row in range(1, a * most // b + 1)) % 1000


def quadratic_congruence(most, b, c, modulus):
    return sum((n * n + b * n + c) % modulus == 0 for n in range(1, most + 1))


def necklaces(sides, colors, red):
    """By the least period of a painting: one of period d looks the same as d - 1 others."""

    def of_period(d):
        if red * d % sides:
            return 0
        count = red * d // sides
        return comb(d, count) * (colors - 1) ** (d - count) - sum(of_period(e) for e in range(1, d) if d % e == 0)

    return sum(of_period(d) // d for d in range(1, sides + 1) if sides % d == 0) % 1000


def two_urns(a, b, c, d):
    first, second = Fraction(a * (a - 1), (a + b) * (a + b - 1)), Fraction(c * (c - 1), (c + d) * (c + d - 1))
    posterior = first / (first + second)
    return terms(posterior * Fraction(a - 2, a + b - 2) + (1 - posterior) * Fraction(c - 2, c + d - 2))


def incircle_touch(c, a, b):
    x, height2 = corner(a, b, c)
    foot = (a * x + c * a) / (a + b + c)  # below the incentre, the mean of the corners weighted by the sides
    return terms((x - foot) ** 2 + height2)


def product_over_roots(a, b, c, *quadratics):
    ((u, v),) = set(zip(quadratics[::2], quadratics[1::2], strict=True))
    return near(numpy.prod([r * r + u * r + v for r in numpy.roots([1, a, b, c])]))


def period_of_five(first, second, c, square, index):
    assert square == c * c
    before, term = Fraction(first), Fraction(second)
    for _ in range(index - 2):
        before, term = term, (c * term + 1) / (square * before)
    return terms(term)


def terms(value: Fraction) -> int:
    assert value > 0
    return value.numerator + value.denominator


def near(value: complex) -> int:
    assert abs(value - round(value.real)) < 1e-3
    return round(value.real)


def corner(a, b, c):
    """A's first coordinate, and the square of its second, with B in the origin and C at (a, 0)."""
    x = Fraction(a * a + c * c - b * b, 2 * a)
    assert c * c > x * x
    return x, c * c - x * x


# What each template writes: # is an integer, @ a coefficient with its sign before it.
TEXTS = {
    power_sum: "Find the remainder when $#^{#} + #^{#}$ is divided by $#$.",
    exactly_one: "How many positive integers less than or equal to $#$ are divisible by exactly one of $#$ and $#$?",
    arithmetic: r"An arithmetic sequence $a_1, a_2, a_3, \dots$ has $a_{#} = #$ and $a_{#} = #$. Find $a_{#}$.",
    sum_and_product: "The real numbers $x$ and $y$ satisfy $x + y = #$ and $xy = #$. Find $x^2 + #xy + y^2$.",
    box: "The twelve edges of a rectangular box have a total length of $#$, and the square of the length of its space diagonal is $#$. Find the total surface area of the box.",
    chinese_remainders: "Find the least positive integer that leaves a remainder of $#$ when divided by $#$, a remainder of $#$ when divided by $#$, and a remainder of $#$ when divided by $#$.",
    digit_sums: r"How many integers $n$ with $# \le n \le #$ have the property that the sum of the decimal digits of $n$ is divisible by $#$?",
    divisible_product: rf"Integers $x$ and $y$ are chosen independently and uniformly at random with $1 \le x \le #$ and $1 \le y \le #$. The probability that $xy$ is divisible by $#$ is {RATIO}",
    first_order: r"A sequence is defined by $a_1 = #$ and $a_{n+1} = #a_n + #$ for $n \ge 1$. Find the remainder when $a_{#}$ is divided by $#$.",
    pairwise_sums: f"{ROOTS}Find $(r + s)(s + t)(t + r)$.",
    inside_triangle: "A lattice point is a point whose coordinates are both integers. How many lattice points lie strictly inside the triangle with vertices $(#, #)$, $(#, #)$ and $(#, #)$?",
    divisors_without_squares: r"Find the remainder when the sum of all positive divisors of $#^{#} \cdot #^{#} \cdot #^{#}$ that are multiples of $#$ but not perfect squares is divided by $1000$.",
    avoiding_paths: "A path goes from $(0, 0)$ to $(#, #)$ in steps of one unit to the right or one unit up. Find the remainder when the number of such paths that pass through neither $(#, #)$ nor $(#, #)$ is divided by $1000$.",
    draws_until: f"An urn holds $#$ red and $#$ white balls. Balls are drawn at random, one at a time and without replacement, until $#$ red balls have been drawn. The expected number of balls drawn, red and white together, is {RATIO}",
    product_of_radii: f"The product of the inradius and the circumradius of a triangle with sides $#$, $#$ and $#$ is {RATIO}",
    power_sums_of_roots: f"{ROOTS}Find the remainder when the positive integer $r^{{#}} + s^{{#}} + t^{{#}}$ is divided by $1000$.",
    floor_sum: r"Find the remainder when $\sum_{k=1}^{#} \left\lfloor \frac{#k}{#} \right\rfloor$ is divided by $1000$.",
    quadratic_congruence: r"How many positive integers $n \le #$ are such that $n^2 + #n + #$ is divisible by $#$?",
    necklaces: "Each vertex of a regular polygon with $#$ sides is painted in one of $#$ colors, one of which is red, so that exactly $#$ vertices are red. Two paintings are considered the same if a rotation of the polygon takes one to the other. Find the remainder when the number of different paintings is divided by $1000$.",
    two_urns: f"Urn A holds $#$ red and $#$ white balls, and urn B holds $#$ red and $#$ white balls. A fair coin decides from which urn three balls are drawn at random, one at a time and without replacement. Given that the first two balls are red, the probability that the third is red as well is {RATIO}",
    incircle_touch: rf"In triangle $ABC$, $AB = #$, $BC = #$ and $CA = #$. The incircle of the triangle touches side $\overline{{BC}}$ at $D$. Then $AD^2 = \frac{{m}}{{n}}$, {COPRIME}",
    product_over_roots: f"{ROOTS}Find $(r^2 @r @)(s^2 @s @)(t^2 @t @)$.",
    period_of_five: r"A sequence is defined by $a_1 = #$, $a_2 = #$ and $a_n = \frac{#a_{n-1} + 1}{#a_{n-2}}$ for $n \ge 3$. Then $a_{#} = \frac{p}{q}$, where $p$ and $q$ are relatively prime positive integers. Find $p + q$.",
}
PATTERNS = {
    road: re.compile(re.escape(text).replace(r"\#", r"(-?\d+)").replace("@", r"([-+] \d+)"))
    for road, text in TEXTS.items()
}


def work_out(problem: str) -> tuple[str, int]:
    """The template that a problem is from, and its answer by the other road."""
    found = [(road, match) for road, pattern in PATTERNS.items() if (match := pattern.fullmatch(problem))]
    assert len(found) == 1, problem
    road, match = found[0]
    return road.__name__, road(*(int(number.replace(" ", "")) for number in match.groups()))


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_template_has_the_answer_that_another_road_leads_to(level):
    instances = Counter()
    for row in aime.problems("train", 400, 0, level):
        template, answer = work_out(row["problem"])
        assert row["answer"] == str(answer), row["problem"]
        instances[template, row["topic"]] += 1
    assert {(template.__name__, topic) for topic, template in aime.TEMPLATES[level]} == set(instances)
    assert min(instances.values()) >= 30


def test_the_roads_of_this_file_are_those_of_the_templates():
    templates = [template.__name__ for level in aime.TEMPLATES.values() for _, template in level]
    assert sorted(templates) == sorted(road.__name__ for road in TEXTS)
    assert all(len(level) >= 4 for level in aime.TEMPLATES.values())


def test_the_two_counts_of_necklaces_agree_with_all_paintings():
    for sides, colors, red in ((6, 3, 2), (8, 3, 4), (9, 3, 3)):
        paintings = [p for p in product(range(colors), repeat=sides) if p.count(0) == red]
        orbits = {min(p[i:] + p[:i] for i in range(sides)) for p in paintings}
        assert necklaces(sides, colors, red) == len(orbits) % 1000


def test_the_evaluation_set_is_right_and_balanced():
    rows = load_problems("data/aime_style.yaml#test")
    assert Counter(row.columns["level"] for row in rows) == {1: 30, 2: 30, 3: 30, 4: 30}
    assert all(row.answer == str(work_out(row.problem)[1]) for row in rows)
    for level in (1, 2, 3, 4):
        alone = load_problems(f"data/aime_style.yaml#level_{level}")
        assert alone == [row for row in rows if row.columns["level"] == level]


def test_levels_take_turns_and_answers_are_integers_from_0_to_999():
    rows = list(aime.problems("train", 2000, 3))
    assert [row["level"] for row in rows] == [1, 2, 3, 4] * 500
    assert all(re.fullmatch(r"0|[1-9]\d{0,2}", row["answer"]) for row in rows)
    topics = {"number theory", "counting", "algebra", "sequences", "geometry", "probability"}
    assert {row["topic"] for row in rows} == topics
    assert {row["level"] for row in aime.problems("train", 20, 0, 3)} == {3}


def test_train_and_test_are_disjoint_whatever_the_seed():
    train = {row["problem"] for seed in range(3) for row in aime.problems("train", 2000, seed)}
    test = {row["problem"] for seed in range(3) for row in aime.problems("test", 200, seed)}
    assert not train & test
    assert {aime.split_of(problem) for problem in train} == {"train"}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    first, again, other = (list(aime.problems("train", 400, seed)) for seed in (1, 1, 2))
    assert first == again
    texts = {row["problem"] for row in first}
    assert sum(row["problem"] in texts for row in other) < 0.05 * len(other)


def test_no_problem_comes_twice():
    rows = [row["problem"] for row in aime.problems("train", 5000, 0)]
    assert len(set(rows)) == len(rows) == 5000
    rows = [row["problem"] for row in aime.problems("test", 1000, 0)]
    assert len(set(rows)) == len(rows) == 1000


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_no_answer_can_be_guessed(level):
    answers = Counter(row["answer"] for row in aime.problems("train", 400, 0, level))
    assert max(answers.values()) <= 0.03 * 400
    assert len(answers) > 200


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="gives up to 2000 problems"):
        next(aime.problems("test", 2001, 0))
    with pytest.raises(ValueError, match="has the levels 1, 2, 3, 4"):
        next(aime.problems("test", 1, 0, level=5))
