//! What a network sees of an image: the fixed numbers of normalisation and of the Sobel filter (recipe).

/// Mean of each channel, RGB from 0 to 1, over ImageNet's training images (recipe; torchvision has the same).
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of each channel, as [`MEAN`].
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The Sobel filter makes grey first: a factor of each normalised channel, `[1, 3, 1, 1]`; `sobel.0.weight` of the authors'
/// checkpoints (models/alexnet.py).
pub const SOBEL_GREY: [f32; 3] = [1.0 / 3.0; 3];

/// Then come the horizontal and the vertical gradient, with zeros around the normalised image: `[2, 1, 3, 3]`; `sobel.1.weight` of
/// the authors' checkpoints (models/alexnet.py).
pub const SOBEL_KERNELS: [f32; 18] = [
    1.0, 0.0, -1.0, 2.0, 0.0, -2.0, 1.0, 0.0, -1.0, // horizontal
    1.0, 2.0, 1.0, 0.0, 0.0, 0.0, -1.0, -2.0, -1.0, // vertical
];
