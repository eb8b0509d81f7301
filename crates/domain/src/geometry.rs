//! How large an image leaves each network: pure arithmetic, so that a spec can be refused before libtorch is loaded.

use crate::Architecture;

/// Width of the two fully connected layers of AlexNet and VGG-16, and so of their embedding.
pub const HIDDEN: u32 = 4096;

/// Side in pixels of the last feature map for square images of `image_size`; 0 when nothing is left.
pub fn feature_map_side(architecture: Architecture, image_size: u32) -> u32 {
    match architecture {
        Architecture::AlexNet => {
            let pool = |side| window(side, 3, 2, 0);
            let conv1 = window(image_size, 11, 4, 2);
            pool(pool(pool(conv1)))
        }
        Architecture::Vgg16 => image_size >> 5,
        Architecture::ResNet18 | Architecture::ResNet50 => {
            let stem = window(window(image_size, 7, 2, 3), 3, 2, 1);
            (0..3).fold(stem, |side, _| window(side, 3, 2, 1))
        }
    }
}

/// The smallest image that leaves a network at least one pixel.
pub fn smallest_image(architecture: Architecture) -> u32 {
    (1..).find(|size| feature_map_side(architecture, *size) > 0).unwrap_or(u32::MAX)
}

/// Number of values in an image's embedding: the second fully connected layer, or ResNet's average-pooled channels.
pub fn embedding_width(architecture: Architecture) -> u32 {
    match architecture {
        Architecture::AlexNet | Architecture::Vgg16 => HIDDEN,
        Architecture::ResNet18 => 512,
        Architecture::ResNet50 => 2048,
    }
}

/// The side to which the shorter edge is resized before the centre crop: `image_size · 256 / 224`, rounded down.
pub fn resize_side(image_size: u32) -> u32 {
    (u64::from(image_size) * 256 / 224) as u32
}

/// Size of an image whose shorter side becomes `short`; the longer one is truncated, as torchvision does it.
pub fn resized(width: u32, height: u32, short: u32) -> (u32, u32) {
    let long = |long: u32, of: u32| (u64::from(short) * u64::from(long) / u64::from(of.max(1))) as u32;
    if width <= height { (short, long(height, width)) } else { (long(width, height), short) }
}

/// Size of an image whose shorter side is at most `side`: [`resized`], or as it is.
pub fn shrunk(width: u32, height: u32, side: u32) -> (u32, u32) {
    if width.min(height) > side { resized(width, height, side) } else { (width, height) }
}

/// Output side of a convolution or pooling window.
fn window(side: u32, kernel: u32, stride: u32, padding: u32) -> u32 {
    match (side + 2 * padding).checked_sub(kernel) {
        Some(room) if side > 0 => room / stride + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_those_of_the_papers() {
        let cases = [
            (Architecture::AlexNet, 224, 6),
            (Architecture::AlexNet, 64, 1),
            (Architecture::AlexNet, 50, 0),
            (Architecture::Vgg16, 224, 7),
            (Architecture::Vgg16, 31, 0),
            (Architecture::ResNet18, 224, 7),
            (Architecture::ResNet50, 64, 2),
            (Architecture::ResNet50, 1, 1),
        ];
        for (architecture, size, side) in cases {
            assert_eq!(feature_map_side(architecture, size), side, "{architecture} at {size}");
        }
        assert_eq!(smallest_image(Architecture::AlexNet), 63);
        assert_eq!(smallest_image(Architecture::Vgg16), 32);
        assert_eq!(resize_side(224), 256);
        assert_eq!(resize_side(64), 73);
        assert_eq!(resized(500, 375, 256), (341, 256));
        assert_eq!(resized(30, 40, 256), (256, 341));
        assert_eq!(shrunk(500, 375, 256), (341, 256));
        assert_eq!(shrunk(500, 200, 256), (500, 200));
    }
}
