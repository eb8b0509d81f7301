//! The ten classes as functions of the plane: how much ink lies at a point, where one unit is one period.

use std::f32::consts::{PI, TAU};

/// A point of the plane, or the way from one point to another.
pub(super) type Point = [f32; 2];

/// What one picture varies of its class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Tells the irregular details of two pictures apart.
    pub salt: u32,
    /// How much of the plane is ink, from 0 (little) to 1 (much).
    pub weight: f32,
    /// A second freedom, used by the classes that have one, from 0 to 1.
    pub twist: f32,
}

/// A class: the name of its folder, and where its ink is (true) or is not.
pub(super) struct Pattern {
    pub name: &'static str,
    pub ink: fn(Point, Form) -> bool,
}

/// Image i is of class i % 10.
pub(super) const PATTERNS: [Pattern; 10] = [
    Pattern { name: "discs", ink: discs },
    Pattern { name: "stripes", ink: stripes },
    Pattern { name: "checkers", ink: checkers },
    Pattern { name: "stars", ink: stars },
    Pattern { name: "clouds", ink: clouds },
    Pattern { name: "rings", ink: rings },
    Pattern { name: "bricks", ink: bricks },
    Pattern { name: "waves", ink: waves },
    Pattern { name: "cracks", ink: cracks },
    Pattern { name: "triangles", ink: triangles },
];

fn discs(at: Point, form: Form) -> bool {
    scattered(at, form.salt).any(|thing| length(thing.from) < thing.size * (0.34 + 0.14 * form.weight))
}

fn stripes(at: Point, form: Form) -> bool {
    at[0].rem_euclid(1.0) < 0.3 + 0.4 * form.weight
}

fn checkers(at: Point, form: Form) -> bool {
    let [column, row] = [at[0] * 1.4, at[1] * (1.1 + 0.6 * form.twist)].map(|along| along.floor() as i64);
    (column + row).rem_euclid(2) == 0
}

fn stars(at: Point, form: Form) -> bool {
    scattered(at, form.salt).any(|thing| {
        let step = TAU / 5.0;
        // From a tip (0) to the notch between two tips (1).
        let notch = ((angle(thing.from) + thing.turn).rem_euclid(step) / step * 2.0 - 1.0).abs();
        length(thing.from) < thing.size * (0.62 - (0.5 - 0.12 * form.weight) * (1.0 - (1.0 - notch).powi(2)).sqrt())
    })
}

fn clouds(at: Point, form: Form) -> bool {
    // The edge of a fractal: ragged at every scale, unlike the clean edges of the other classes.
    turbulence(at.map(|along| along * 1.3), form.salt) > 0.45 + 0.1 * (1.0 - form.weight)
}

fn rings(at: Point, form: Form) -> bool {
    let nearest = scattered(at.map(|along| along * 0.5), form.salt).map(|thing| length(thing.from));
    let distance = nearest.fold(f32::INFINITY, f32::min);
    (distance * 3.4).rem_euclid(1.0) < 0.35 + 0.3 * form.weight
}

fn bricks(at: Point, form: Form) -> bool {
    let [along, up] = [at[0] * 0.65, at[1] * 1.3];
    let shift = if up.floor() as i64 % 2 == 0 { 0.0 } else { 0.5 };
    let mortar = 0.1 + 0.1 * form.weight;
    (along + shift).rem_euclid(1.0) > mortar * 0.5 && up.rem_euclid(1.0) > mortar
}

fn waves(at: Point, form: Form) -> bool {
    let swing = (0.3 + 0.15 * form.twist) * (at[1] * PI).sin();
    (at[0] * 1.1 + swing).rem_euclid(1.0) < 0.35 + 0.3 * form.weight
}

fn cracks(at: Point, form: Form) -> bool {
    // Close to equally far from the nearest two of the scattered points: the edges of Voronoi cells.
    let (mut first, mut second) = (f32::INFINITY, f32::INFINITY);
    for distance in scattered(at, form.salt).map(|thing| length(thing.from)) {
        second = second.min(distance.max(first));
        first = first.min(distance);
    }
    second - first < 0.08 + 0.1 * form.weight
}

fn triangles(at: Point, form: Form) -> bool {
    scattered(at, form.salt).any(|thing| {
        let step = TAU / 3.0;
        let side = (angle(thing.from) + thing.turn).rem_euclid(step) - step / 2.0;
        length(thing.from) * side.cos() < thing.size * (0.2 + 0.08 * form.weight)
    })
}

/// One of the things strewn over the plane.
struct Thing {
    /// The way from it to the point that was asked about.
    from: Point,
    size: f32,
    turn: f32,
}

/// The things close enough to a point to matter: one in each of the nine cells around it, off its cell's middle.
fn scattered(at: Point, salt: u32) -> impl Iterator<Item = Thing> {
    let cell = at.map(|along| along.floor() as i32);
    (0..9).map(move |step| {
        let [column, row] = [cell[0] + step % 3 - 1, cell[1] + step / 3 - 1];
        let chance = |what| chance(column, row, salt.wrapping_add(what));
        let off = |what| 0.5 + 0.5 * (chance(what) - 0.5);
        Thing {
            from: [at[0] - column as f32 - off(0), at[1] - row as f32 - off(1)],
            size: 0.7 + 0.3 * chance(2),
            turn: TAU * chance(3),
        }
    })
}

/// Four octaves of smooth noise, from 0 to 1.
pub(super) fn turbulence(at: Point, salt: u32) -> f32 {
    (0..4)
        .map(|octave| {
            noise(at.map(|along| along * (1 << octave) as f32), salt.wrapping_add(octave)) * 0.5f32.powi(octave as i32 + 1)
        })
        .sum::<f32>()
        / 0.9375
}

/// Smooth noise, from 0 to 1, with about one hill a unit.
fn noise(at: Point, salt: u32) -> f32 {
    let [column, row] = at.map(|along| along.floor() as i32);
    let [x, y] = at.map(|along| along - along.floor()).map(|part| part * part * (3.0 - 2.0 * part));
    let corner = |right, down| chance(column + right, row + down, salt);
    let mix = |from: f32, to: f32, part: f32| from + (to - from) * part;
    mix(mix(corner(0, 0), corner(1, 0), x), mix(corner(0, 1), corner(1, 1), x), y)
}

/// A number from 0 to 1 that belongs to a cell of the plane; a hash, as no table could cover the plane.
fn chance(column: i32, row: i32, salt: u32) -> f32 {
    let mut mixed =
        (column as u32).wrapping_mul(0x9E37_79B1) ^ (row as u32).wrapping_mul(0x85EB_CA77) ^ salt.wrapping_mul(0xC2B2_AE3D);
    for _ in 0..2 {
        mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2C1B_3C6D);
        mixed ^= mixed >> 13;
    }
    (mixed >> 8) as f32 / (1 << 24) as f32
}

fn length(way: Point) -> f32 {
    way[0].hypot(way[1])
}

fn angle(way: Point) -> f32 {
    way[1].atan2(way[0])
}
