"""The task `aime_style`: competition problems with integer answers from 0 to 999, where AIME cannot be downloaded.

None is taken from a competition. Each template draws the numbers and computes the answer exactly, and what falls out of
range is drawn again. Levels 1 to 4 are our estimate, from two steps to several ideas at once, not measured difficulty.

Numbers that are interchangeable (two moduli of one problem, the corners of a triangle) are sorted, so that a problem
cannot stand in train in one order and in test in another.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb, gcd, lcm, prod

ANSWERS = range(1000)
REDRAW = -1  # out of range, like any answer that no one could write into AIME's three boxes
TEST_SHARE = 0.1
MOST = {"train": 20000, "test": 2000}  # of one level alone, too; there are more

COPRIME = "where $m$ and $n$ are relatively prime positive integers. Find $m + n$."
RATIO = rf"$\frac{{m}}{{n}}$, {COPRIME}"


def problems(split: str, count: int, seed: int, level: int | None = None) -> Iterator[dict[str, str | int]]:
    """`count` different problems of a split ("train" or "test"), as rows of `problem`, `answer`, `level` and `topic`.

    Without `level` the levels take turns, and the rows of a level are those that naming it would give. A problem's
    split depends on its text alone, so no seed can move a test problem into training.
    """
    if count > MOST[split]:
        raise ValueError(f"the split {split} of aime_style gives up to {MOST[split]} problems, not {count}")
    if level is not None and level not in TEMPLATES:
        raise ValueError(f"aime_style has the levels {', '.join(map(str, TEMPLATES))}, not {level}")
    levels = list(TEMPLATES) if level is None else [level]
    streams = [of_level(split, seed, each) for each in levels]
    for number in range(count):
        yield next(streams[number % len(streams)])


def of_level(split: str, seed: int, level: int) -> Iterator[dict[str, str | int]]:
    rng = random.Random(f"{split}/{seed}/{level}")
    seen: set[str] = set()
    while True:
        topic, template = rng.choice(TEMPLATES[level])
        problem, answer = draw(template, rng)
        if split_of(problem) == split and problem not in seen:
            seen.add(problem)
            yield {"problem": problem, "answer": str(answer), "level": level, "topic": topic}


def draw(template: Callable[[random.Random], tuple[str, int]], rng: random.Random) -> tuple[str, int]:
    while True:
        problem, answer = template(rng)
        if answer in ANSWERS:
            return problem, answer


def split_of(problem: str) -> str:
    return "test" if hashlib.sha256(problem.encode()).digest()[0] < 256 * TEST_SHARE else "train"


def several(rng: random.Random, count: int, least: int, most: int) -> list[int]:
    return [rng.randint(least, most) for _ in range(count)]


def coefficient(rng: random.Random, most: int) -> int:
    """Neither 0 nor 1 nor -1, which would be written differently."""
    return rng.choice((-1, 1)) * rng.randint(2, most)


def polynomial(*terms: tuple[int, str]) -> str:
    """What follows a leading term: `- 4x^2 + 7x - 10`."""
    return " ".join(f"{'-' if factor < 0 else '+'} {abs(factor)}{power}" for factor, power in terms)


def roots_of(a: int, b: int, c: int) -> str:
    cubic = f"x^3 {polynomial((a, 'x^2'), (b, 'x'), (c, ''))}"
    return f"Let $r$, $s$ and $t$ be the complex roots, listed with multiplicity, of ${cubic}$."


def ratio(value: Fraction) -> int:
    """m + n. The text promises a positive value, so any other is drawn again."""
    return value.numerator + value.denominator if value > 0 else REDRAW


def thousand(number: int) -> int:
    """The remainder modulo 1000. To ask for that of a number below 1000 would be odd, so it is drawn again."""
    return number % 1000 if number >= 1000 else REDRAW


# Level 1


def power_sum(rng: random.Random) -> tuple[str, int]:
    a, b = sorted(rng.sample(range(2, 100), 2))
    i, j = several(rng, 2, 5, 40)
    modulus = rng.randint(50, 999)
    text = f"Find the remainder when ${a}^{{{i}}} + {b}^{{{j}}}$ is divided by ${modulus}$."
    return text, (a**i + b**j) % modulus


def exactly_one(rng: random.Random) -> tuple[str, int]:
    most = rng.randint(300, 1500)
    a, b = sorted(rng.sample(range(3, 41), 2))
    text = f"How many positive integers less than or equal to ${most}$ are divisible by exactly one of ${a}$ and ${b}$?"
    return text, most // a + most // b - 2 * (most // lcm(a, b))


def arithmetic(rng: random.Random) -> tuple[str, int]:
    i, j = sorted(rng.sample(range(2, 31), 2))
    k = rng.randint(31, 80)
    first, step = rng.randint(-200, 400), coefficient(rng, 20)
    text = (
        rf"An arithmetic sequence $a_1, a_2, a_3, \dots$ has $a_{{{i}}} = {first + (i - 1) * step}$ "
        rf"and $a_{{{j}}} = {first + (j - 1) * step}$. Find $a_{{{k}}}$."
    )
    return text, first + (k - 1) * step


def sum_and_product(rng: random.Random) -> tuple[str, int]:
    total, k = rng.randint(5, 40), rng.randint(3, 9)
    product = rng.randint(-300, total**2 // 4)  # any more, and x and y would not be real
    text = f"The real numbers $x$ and $y$ satisfy $x + y = {total}$ and $xy = {product}$. Find $x^2 + {k}xy + y^2$."
    return text, total**2 + (k - 2) * product


def box(rng: random.Random) -> tuple[str, int]:
    a, b, c = several(rng, 3, 2, 30)
    text = (
        f"The twelve edges of a rectangular box have a total length of ${4 * (a + b + c)}$, and the square of the "
        f"length of its space diagonal is ${a * a + b * b + c * c}$. Find the total surface area of the box."
    )
    return text, 2 * (a * b + b * c + c * a)


# Level 2


def chinese_remainders(rng: random.Random) -> tuple[str, int]:
    moduli = sorted(rng.sample(range(4, 18), 3))
    if lcm(*moduli) != prod(moduli):
        return "", REDRAW
    a, b, c = (rng.randrange(1, modulus) for modulus in moduli)
    text = (
        f"Find the least positive integer that leaves a remainder of ${a}$ when divided by ${moduli[0]}$, a remainder "
        f"of ${b}$ when divided by ${moduli[1]}$, and a remainder of ${c}$ when divided by ${moduli[2]}$."
    )
    fitting = (n for n in ANSWERS if [n % modulus for modulus in moduli] == [a, b, c])
    return text, next(fitting, REDRAW)


def digit_sums(rng: random.Random) -> tuple[str, int]:
    least, k = rng.randint(1000, 6000), rng.randint(4, 13)
    most = least + rng.randint(500, 3000)
    text = (
        rf"How many integers $n$ with ${least} \le n \le {most}$ have the property that the sum of the decimal digits "
        rf"of $n$ is divisible by ${k}$?"
    )
    return text, sum(sum(map(int, str(n))) % k == 0 for n in range(least, most + 1))


def divisible_product(rng: random.Random) -> tuple[str, int]:
    a, b = sorted(rng.sample(range(8, 61), 2))
    k = rng.randint(4, 40)
    text = (
        rf"Integers $x$ and $y$ are chosen independently and uniformly at random with $1 \le x \le {a}$ and "
        rf"$1 \le y \le {b}$. The probability that $xy$ is divisible by ${k}$ is {RATIO}"
    )
    return text, ratio(Fraction(sum(b // (k // gcd(x, k)) for x in range(1, a + 1)), a * b))


def first_order(rng: random.Random) -> tuple[str, int]:
    first, factor, shift = rng.randint(1, 20), rng.randint(2, 9), rng.randint(1, 20)
    index, modulus = rng.randint(20, 200), rng.randint(101, 999)
    text = (
        rf"A sequence is defined by $a_1 = {first}$ and $a_{{n+1}} = {factor}a_n + {shift}$ for $n \ge 1$. "
        rf"Find the remainder when $a_{{{index}}}$ is divided by ${modulus}$."
    )
    term = first
    for _ in range(index - 1):
        term = (factor * term + shift) % modulus
    return text, term


def pairwise_sums(rng: random.Random) -> tuple[str, int]:
    a, b, c = coefficient(rng, 30), coefficient(rng, 60), coefficient(rng, 200)
    text = f"{roots_of(a, b, c)} Find $(r + s)(s + t)(t + r)$."
    return text, c - a * b


def inside_triangle(rng: random.Random) -> tuple[str, int]:
    (a, b), (c, d), (e, f) = sorted(tuple(several(rng, 2, -20, 20)) for _ in range(3))
    twice_area = abs((c - a) * (f - b) - (e - a) * (d - b))
    border = gcd(c - a, d - b) + gcd(e - c, f - d) + gcd(a - e, b - f)
    text = (
        f"A lattice point is a point whose coordinates are both integers. How many lattice points lie strictly inside "
        f"the triangle with vertices $({a}, {b})$, $({c}, {d})$ and $({e}, {f})$?"
    )
    return text, (twice_area - border + 2) // 2 if twice_area else REDRAW


# Level 3


def divisors_without_squares(rng: random.Random) -> tuple[str, int]:
    primes = sorted(rng.sample((2, 3, 11, 13, 17), 3))  # with 5 or 7, too many sums would end in 00
    powers, least = several(rng, 3, 2, 9), several(rng, 3, 0, 2)
    if not any(least):
        return "", REDRAW
    number = r" \cdot ".join(f"{prime}^{{{power}}}" for prime, power in zip(primes, powers, strict=True))
    factor = prod(prime**power for prime, power in zip(primes, least, strict=True))
    text = (
        f"Find the remainder when the sum of all positive divisors of ${number}$ that are multiples of ${factor}$ but "
        f"not perfect squares is divided by $1000$."
    )
    ranges = list(zip(primes, least, powers, strict=True))
    multiples = prod(sum(p**i for i in range(low, high + 1)) for p, low, high in ranges)
    squares = prod(sum(p**i for i in range(low + low % 2, high + 1, 2)) for p, low, high in ranges)
    return text, thousand(multiples - squares)


def avoiding_paths(rng: random.Random) -> tuple[str, int]:
    a, b = sorted(rng.sample(range(6, 15), 2))
    (p, q), (u, v) = sorted(rng.sample([(x, y) for x in range(a + 1) for y in range(b + 1) if 0 < x + y < a + b], 2))

    def ways(right: int, up: int) -> int:
        return comb(right + up, right) if min(right, up) >= 0 else 0

    text = (
        f"A path goes from $(0, 0)$ to $({a}, {b})$ in steps of one unit to the right or one unit up. Find the "
        f"remainder when the number of such paths that pass through neither $({p}, {q})$ nor $({u}, {v})$ is divided "
        f"by $1000$."
    )
    first, second = ways(p, q) * ways(a - p, b - q), ways(u, v) * ways(a - u, b - v)
    both = ways(p, q) * ways(u - p, v - q) * ways(a - u, b - v)  # (u, v) is no further left, so it comes second
    return text, thousand(ways(a, b) - first - second + both)


def draws_until(rng: random.Random) -> tuple[str, int]:
    red, white = rng.randint(5, 40), rng.randint(5, 60)
    wanted = rng.randint(2, red - 1)
    text = (
        f"An urn holds ${red}$ red and ${white}$ white balls. Balls are drawn at random, one at a time and without "
        f"replacement, until ${wanted}$ red balls have been drawn. The expected number of balls drawn, red and white "
        f"together, is {RATIO}"
    )
    # The red balls cut the white ones into red + 1 gaps of the same expected length.
    return text, ratio(wanted * (1 + Fraction(white, red + 1)))


def product_of_radii(rng: random.Random) -> tuple[str, int]:
    a, b, c = sorted(several(rng, 3, 5, 60))
    text = (
        f"The product of the inradius and the circumradius of a triangle with sides ${a}$, ${b}$ and ${c}$ is {RATIO}"
    )
    return text, ratio(Fraction(a * b * c, 2 * (a + b + c))) if a + b > c else REDRAW


def power_sums_of_roots(rng: random.Random) -> tuple[str, int]:
    a, b, c = (coefficient(rng, 9) for _ in range(3))
    power = rng.randint(6, 12)
    text = (
        f"{roots_of(a, b, c)} Find the remainder when the positive integer "
        f"$r^{{{power}}} + s^{{{power}}} + t^{{{power}}}$ is divided by $1000$."
    )
    sums = [3, -a, a * a - 2 * b]
    while len(sums) <= power:
        sums.append(-a * sums[-1] - b * sums[-2] - c * sums[-3])
    return text, thousand(sums[power])


def floor_sum(rng: random.Random) -> tuple[str, int]:
    a, b, most = rng.randint(3, 60), rng.randint(5, 60), rng.randint(100, 400)
    text = (
        rf"Find the remainder when $\sum_{{k=1}}^{{{most}}} \left\lfloor \frac{{{a}k}}{{{b}}} \right\rfloor$ "
        rf"is divided by $1000$."
    )
    return text, thousand(sum(a * k // b for k in range(1, most + 1))) if gcd(a, b) == 1 else REDRAW


# Level 4


def quadratic_congruence(rng: random.Random) -> tuple[str, int]:
    modulus = prod(rng.sample((3, 5, 7, 11, 13, 17), 3))
    one, two = rng.sample(range(1, modulus), 2)  # with two roots to begin with, the answer is seldom 0
    b, c = -(one + two) % modulus, one * two % modulus
    most = rng.randint(1000, 40000)
    text = rf"How many positive integers $n \le {most}$ are such that $n^2 + {b}n + {c}$ is divisible by ${modulus}$?"
    roots = [n for n in range(1, modulus + 1) if (n * n + b * n + c) % modulus == 0]
    return text, sum((most - root) // modulus + 1 for root in roots) if min(b, c) > 1 else REDRAW


def necklaces(rng: random.Random) -> tuple[str, int]:
    sides, others = rng.randint(6, 40), rng.choice((2, 3, 4, 6, 7, 8, 9, 11, 12, 13))  # powers of 10 would end in 000
    red = rng.randint(2, sides - 2)
    if gcd(sides, red) == 1:  # no rotation but the identity would fix a painting
        return "", REDRAW
    text = (
        f"Each vertex of a regular polygon with ${sides}$ sides is painted in one of ${others + 1}$ colors, one of "
        f"which is red, so that exactly ${red}$ vertices are red. Two paintings are considered the same if a rotation "
        f"of the polygon takes one to the other. Find the remainder when the number of different paintings is divided "
        f"by $1000$."
    )
    fixed = 0
    for rotation in range(sides):
        cycles = gcd(sides, rotation)
        red_cycles, rest = divmod(red * cycles, sides)
        fixed += 0 if rest else comb(cycles, red_cycles) * others ** (cycles - red_cycles)
    return text, thousand(fixed // sides)


def two_urns(rng: random.Random) -> tuple[str, int]:
    (a, b), (c, d) = urns = sorted(tuple(several(rng, 2, 2, 20)) for _ in range(2))
    text = (
        f"Urn A holds ${a}$ red and ${b}$ white balls, and urn B holds ${c}$ red and ${d}$ white balls. A fair coin "
        f"decides from which urn three balls are drawn at random, one at a time and without replacement. Given that "
        f"the first two balls are red, the probability that the third is red as well is {RATIO}"
    )

    def all_red(drawn: int) -> Fraction:
        return sum((Fraction(comb(red, drawn), comb(red + white, drawn)) for red, white in urns), Fraction())

    return text, ratio(all_red(3) / all_red(2))


def incircle_touch(rng: random.Random) -> tuple[str, int]:
    c, b = sorted(rng.sample(range(5, 61), 2))
    a = rng.randint(b - c + 1, min(b + c - 1, 60))
    text = (
        rf"In triangle $ABC$, $AB = {c}$, $BC = {a}$ and $CA = {b}$. The incircle of the triangle touches side "
        rf"$\overline{{BC}}$ at $D$. Then $AD^2 = \frac{{m}}{{n}}$, {COPRIME}"
    )
    left, right = Fraction(a + c - b, 2), Fraction(a + b - c, 2)  # BD and DC
    return text, ratio((b * b * left + c * c * right) / a - left * right)  # Stewart


def product_over_roots(rng: random.Random) -> tuple[str, int]:
    a, b, c = (coefficient(rng, 12) for _ in range(3))
    u, v = coefficient(rng, 9), coefficient(rng, 12)
    factors = "".join(f"({root}^2 {polynomial((u, root), (v, ''))})" for root in "rst")
    text = f"{roots_of(a, b, c)} Find ${factors}$."
    # The cubic leaves the remainder slope x + constant modulo x^2 + ux + v; the product is its norm.
    slope, constant = u * u - v - a * u + b, u * v - a * v + c
    return text, slope * slope * v - slope * constant * u + constant * constant


def period_of_five(rng: random.Random) -> tuple[str, int]:
    first, second = several(rng, 2, 2, 99)
    c, index = rng.randint(2, 9), rng.randint(100, 2999)
    if index % 5 in (1, 2):
        return "", REDRAW
    text = (
        rf"A sequence is defined by $a_1 = {first}$, $a_2 = {second}$ and "
        rf"$a_n = \frac{{{c}a_{{n-1}} + 1}}{{{c * c}a_{{n-2}}}}$ for $n \ge 3$. Then "
        rf"$a_{{{index}}} = \frac{{p}}{{q}}$, where $p$ and $q$ are relatively prime positive integers. Find $p + q$."
    )
    terms = [Fraction(first), Fraction(second)]
    for _ in range(3):
        terms.append((c * terms[-1] + 1) / (c * c * terms[-2]))
    return text, ratio(terms[index % 5 - 1])


TEMPLATES: dict[int, list[tuple[str, Callable[[random.Random], tuple[str, int]]]]] = {
    1: [
        ("number theory", power_sum), ("counting", exactly_one), ("sequences", arithmetic),
        ("algebra", sum_and_product), ("geometry", box),
    ],
    2: [
        ("number theory", chinese_remainders), ("counting", digit_sums), ("probability", divisible_product),
        ("sequences", first_order), ("algebra", pairwise_sums), ("geometry", inside_triangle),
    ],
    3: [
        ("number theory", divisors_without_squares), ("counting", avoiding_paths), ("probability", draws_until),
        ("geometry", product_of_radii), ("algebra", power_sums_of_roots), ("sequences", floor_sum),
    ],
    4: [
        ("number theory", quadratic_congruence), ("counting", necklaces), ("probability", two_urns),
        ("geometry", incircle_touch), ("algebra", product_over_roots), ("sequences", period_of_five),
    ],
}  # fmt: skip
