//! A set of files for TensorBoard's embedding projector: vectors with labels and thumbnails.

use crate::sprite::Sprite;

/// By this name TensorBoard finds the set.
const CONFIG: &str = "projector_config.pbtxt";
const TENSORS: &str = "tensors.tsv";
const METADATA: &str = "metadata.tsv";
const SPRITE: &str = "sprite.png";

/// Vectors as the projector shows them: the first 100,000 of them, each as a point with its labels and its thumbnail.
#[derive(Clone, Debug)]
pub struct Projection<'a> {
    /// Title: letters, digits, spaces, and `-_./`.
    pub name: &'a str,
    /// Numbers in a vector, at least 2.
    pub dims: usize,
    /// `[n, dims]`, all of them finite.
    pub vectors: &'a [f32],
    /// `[n, columns]`; empty when there are no columns.
    pub labels: &'a [Vec<String>],
    /// What the columns of the labels are called. The name of an only column is not shown.
    pub columns: &'a [&'a str],
    /// Thumbnails, one per vector.
    pub sprite: Option<Sprite>,
}

/// Why there are no files for the projector.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// Its name cannot be part of an address.
    #[error("{0:?} cannot name a projection: letters, digits, spaces and any of -_./ can")]
    Name(String),
    /// No vectors, or vectors of odd lengths.
    #[error("{numbers} numbers are no vectors of {dims}: there must be whole ones, of two numbers or more")]
    Vectors {
        /// How many numbers there are.
        numbers: usize,
        /// How many a vector should have.
        dims: usize,
    },
    /// A number is infinite or none.
    #[error("vector {0} has a number that is not finite")]
    NotFinite(usize),
    /// Labels or thumbnails of other vectors.
    #[error("there are {found} {what} for {vectors} vectors")]
    Count {
        /// Labels or thumbnails.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        vectors: usize,
    },
    /// Labels that do not fit the columns.
    #[error("vector {row} has {labels} labels in {columns} columns")]
    Labels {
        /// Which vector.
        row: usize,
        /// How many labels it has.
        labels: usize,
        /// How many it should have.
        columns: usize,
    },
    /// The sheet of thumbnails would be empty or too large.
    #[error("{thumbnails} thumbnails of {side} pixels do not fit on a sprite: they can have 1 to {largest} pixels")]
    Sheet {
        /// How many there are.
        thumbnails: usize,
        /// Their side, in pixels.
        side: usize,
        /// The largest side that fits, in pixels.
        largest: u32,
    },
    /// A thumbnail of another size.
    #[error("thumbnail {index} has {bytes} bytes, not {wanted}")]
    Thumbnail {
        /// Which one.
        index: usize,
        /// Its bytes.
        bytes: usize,
        /// How many it should have.
        wanted: usize,
    },
    /// The sheet could not be encoded.
    #[error("the sprite cannot be encoded: {0}")]
    Encode(#[from] image::ImageError),
}

/// The files of a projection by their names, to lie in one folder beside the event files: `projector_config.pbtxt`,
/// `tensors.tsv`, and where there are labels or thumbnails `metadata.tsv` and `sprite.png`.
///
/// The configuration names the others, so it comes last.
///
/// # Errors
/// When the parts do not fit each other, a number is not finite, or the thumbnails make a sheet of more than
/// [`MAX_SHEET`](crate::MAX_SHEET) pixels a side ([`Sprite::largest_side`] tells which still fit).
pub fn projector(p: &Projection<'_>) -> Result<Vec<(String, Vec<u8>)>, ProjectionError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_./".contains(c);
    if p.name.is_empty() || !p.name.chars().all(plain) {
        return Err(ProjectionError::Name(p.name.to_owned()));
    }
    if p.dims < 2 || p.vectors.is_empty() || !p.vectors.len().is_multiple_of(p.dims) {
        return Err(ProjectionError::Vectors { numbers: p.vectors.len(), dims: p.dims });
    }
    let vectors = p.vectors.len() / p.dims;
    let mut files = vec![(TENSORS.to_owned(), tensors(p)?.into_bytes())];
    if let Some(table) = metadata(p, vectors)? {
        files.push((METADATA.to_owned(), table.into_bytes()));
    }
    if let Some(sprite) = &p.sprite {
        let found = sprite.pngs_rgb.len();
        if found != vectors {
            return Err(ProjectionError::Count { what: "thumbnails", found, vectors });
        }
        files.push((SPRITE.to_owned(), sprite.sheet()?));
    }
    files.push((CONFIG.to_owned(), config(p, vectors).into_bytes()));
    Ok(files)
}

/// A line per vector, in the shortest digits that give the same f32.
fn tensors(p: &Projection<'_>) -> Result<String, ProjectionError> {
    let mut table = String::new();
    for (row, vector) in p.vectors.chunks_exact(p.dims).enumerate() {
        if !vector.iter().all(|number| number.is_finite()) {
            return Err(ProjectionError::NotFinite(row));
        }
        push_line(&mut table, vector.iter().map(f32::to_string));
    }
    Ok(table)
}

/// A line per vector, under a line with the names of the columns unless there is but one; nothing without columns.
fn metadata(p: &Projection<'_>, vectors: usize) -> Result<Option<String>, ProjectionError> {
    if p.columns.is_empty() && p.labels.is_empty() {
        return Ok(None);
    }
    if p.labels.len() != vectors {
        return Err(ProjectionError::Count { what: "rows of labels", found: p.labels.len(), vectors });
    }
    let mut table = String::new();
    if p.columns.len() > 1 {
        push_line(&mut table, p.columns.iter().map(|name| cell(name)));
    }
    for (row, labels) in p.labels.iter().enumerate() {
        if labels.is_empty() || labels.len() != p.columns.len() {
            return Err(ProjectionError::Labels { row, labels: labels.len(), columns: p.columns.len() });
        }
        push_line(&mut table, labels.iter().map(|label| cell(label)));
    }
    Ok(Some(table))
}

/// A text that stays in its cell: tabs, ends of lines and the like become spaces. An empty one becomes a dash, since the
/// projector passes over lines without any text and would give the labels below to the wrong vectors.
fn cell(text: &str) -> String {
    let breaks = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
    let flat: String = text.chars().map(|c| if breaks(c) { ' ' } else { c }).collect();
    if flat.trim().is_empty() { "-".to_owned() } else { flat }
}

fn push_line(table: &mut String, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    table.push_str(&cells.join("\t"));
    table.push('\n');
}

/// The configuration, as text of `tensorboard.ProjectorConfig`.
fn config(p: &Projection<'_>, vectors: usize) -> String {
    let mut fields = vec![
        format!("  tensor_name: \"{}\"\n", p.name),
        format!("  tensor_shape: {vectors}\n  tensor_shape: {}\n", p.dims),
        format!("  tensor_path: \"{TENSORS}\"\n"),
    ];
    if !p.labels.is_empty() {
        fields.push(format!("  metadata_path: \"{METADATA}\"\n"));
    }
    if let Some(Sprite { side, .. }) = &p.sprite {
        let size = format!("    single_image_dim: {side}\n    single_image_dim: {side}\n");
        fields.push(format!("  sprite {{\n    image_path: \"{SPRITE}\"\n{size}  }}\n"));
    }
    format!("embeddings {{\n{}}}\n", fields.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> &'a str {
        let (_, bytes) = files.iter().find(|(found, _)| found == name).unwrap();
        std::str::from_utf8(bytes).unwrap()
    }

    fn projection<'a>(labels: &'a [Vec<String>], columns: &'a [&'a str]) -> Projection<'a> {
        Projection { name: "epoch 7", dims: 2, vectors: &[0.1, -2.0, 1e-7, 3.5], labels, columns, sprite: None }
    }

    #[test]
    fn vectors_labels_and_thumbnails_become_four_files() {
        let labels = [vec!["a\tb.jpg".to_owned(), "c0001".to_owned()], vec!["line\r\nend".to_owned(), String::new()]];
        let sprite = Sprite { side: 1, pngs_rgb: vec![vec![1, 2, 3], vec![4, 5, 6]] };
        let files = projector(&Projection { sprite: Some(sprite), ..projection(&labels, &["path", "cluster"]) }).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tensors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"]);
        assert_eq!(file(&files, "tensors.tsv"), "0.1\t-2\n0.0000001\t3.5\n");
        assert_eq!(file(&files, "metadata.tsv"), "path\tcluster\na b.jpg\tc0001\nline  end\t-\n");
        let config = file(&files, "projector_config.pbtxt");
        let expected = "embeddings {\n  tensor_name: \"epoch 7\"\n  tensor_shape: 2\n  tensor_shape: 2\n  tensor_path: \
                        \"tensors.tsv\"\n  metadata_path: \"metadata.tsv\"\n  sprite {\n    image_path: \"sprite.png\"\n    \
                        single_image_dim: 1\n    single_image_dim: 1\n  }\n}\n";
        assert_eq!(config, expected);
    }

    #[test]
    fn an_only_column_has_no_header_and_no_blank_line() {
        let labels = [vec![" ".to_owned()], vec!["cat".to_owned()]];
        let files = projector(&projection(&labels, &["class"])).unwrap();
        assert_eq!(file(&files, "metadata.tsv"), "-\ncat\n");
        assert_eq!(projector(&projection(&[], &[])).unwrap().len(), 2);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let said = |p: Projection<'_>| projector(&p).unwrap_err().to_string();
        let labels = [vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]];
        let good = || projection(&[], &[]);
        assert!(said(Projection { name: "a&b", ..good() }).contains("\"a&b\" cannot name"));
        assert!(said(Projection { dims: 3, ..good() }).contains("4 numbers are no vectors of 3"));
        assert!(said(Projection { vectors: &[1.0, 2.0, f32::NAN, 0.0], ..good() }).contains("vector 1 has a number"));
        assert!(said(projection(&labels[..1], &["x"])).contains("1 rows of labels for 2 vectors"));
        assert!(said(projection(&[], &["x"])).contains("0 rows of labels for 2 vectors"));
        assert!(said(projection(&labels, &["x"])).contains("vector 1 has 2 labels in 1 columns"));
        let sprite = Sprite { side: 1, pngs_rgb: vec![vec![0; 3]] };
        assert!(said(Projection { sprite: Some(sprite), ..good() }).contains("1 thumbnails for 2 vectors"));
    }
}
