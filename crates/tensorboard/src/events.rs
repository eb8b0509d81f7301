//! An event file: scalars, histograms, pictures and texts by tag and step.

use crate::histogram::histogram;
use crate::messages::{Dim, Event, Image, Metadata, Plugin, Shape, Summary, Tensor, Value};
use crate::records;
use prost::Message;

/// The format of event files that TensorBoard knows.
const VERSION: &str = "brain.Event:2";

/// `DataType::DT_STRING` of `types.proto`.
const STRINGS: i32 = 7;

/// `DataClass::DATA_CLASS_TENSOR` of `summary.proto`.
const TENSOR_CLASS: i32 = 2;

/// The records of one event file, in order.
///
/// Scalars, histograms and pictures are written as the plain values that every version of TensorBoard and its
/// `EventAccumulator` read (newer ones turn them into tensors for their web page). Tags with the same part before their first
/// `/` are shown together. Wall times are in seconds since 1970.
#[derive(Clone, Debug)]
pub struct EventFile {
    bytes: Vec<u8>,
}

impl EventFile {
    /// A file that begins at `wall_time`.
    pub fn new(wall_time: f64) -> Self {
        let mut file = Self { bytes: Vec::new() };
        file.push(&Event { wall_time, file_version: Some(VERSION.to_owned()), ..Event::default() });
        file
    }

    /// A name by which TensorBoard knows an event file. Later ones (in whole seconds) come later in the order of names.
    pub fn name(wall_time: f64) -> String {
        format!("events.out.tfevents.{:010}.deepcluster", wall_time as u64)
    }

    /// A number. TensorBoard has it as f32.
    pub fn scalar(&mut self, tag: &str, step: i64, wall_time: f64, value: f64) {
        let value = Value { simple_value: Some(value as f32), ..Value::default() };
        self.value(tag, step, wall_time, value);
    }

    /// How values spread, in thirty buckets of equal width. Those that are not finite do not count; without any other,
    /// nothing is written.
    pub fn histogram(&mut self, tag: &str, step: i64, wall_time: f64, values: &[f64]) {
        if let Some(histogram) = histogram(values) {
            self.value(tag, step, wall_time, Value { histo: Some(histogram), ..Value::default() });
        }
    }

    /// A picture with three channels and its size in pixels, encoded as PNG or JPEG.
    pub fn image(&mut self, tag: &str, step: i64, wall_time: f64, width: u32, height: u32, png_or_jpeg: Vec<u8>) {
        let [width, height] = [width, height].map(|side| i32::try_from(side).unwrap_or(i32::MAX));
        let image = Image { height, width, colorspace: 3, encoded: png_or_jpeg };
        self.value(tag, step, wall_time, Value { image: Some(image), ..Value::default() });
    }

    /// A text in Markdown.
    pub fn text(&mut self, tag: &str, step: i64, wall_time: f64, markdown: &str) {
        let shape = Shape { dims: vec![Dim { size: 1 }] };
        let tensor = Tensor { dtype: STRINGS, shape: Some(shape), strings: vec![markdown.as_bytes().to_vec()] };
        let metadata = Metadata { plugin: Some(Plugin { name: "text".to_owned() }), data_class: TENSOR_CLASS };
        let value = Value { tensor: Some(tensor), metadata: Some(metadata), ..Value::default() };
        self.value(tag, step, wall_time, value);
    }

    /// The content of the file.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn value(&mut self, tag: &str, step: i64, wall_time: f64, value: Value) {
        let value = Value { tag: tag.to_owned(), ..value };
        self.push(&Event { wall_time, step, summary: Some(Summary { values: vec![value] }), ..Event::default() });
    }

    fn push(&mut self, event: &Event) {
        records::push(&mut self.bytes, &event.encode_to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(file: EventFile) -> Vec<Event> {
        records::read(&file.finish()).iter().map(|data| Event::decode(data.as_slice()).unwrap()).collect()
    }

    #[test]
    fn every_record_comes_back() {
        let mut file = EventFile::new(1_700_000_000.5);
        file.scalar("loss/train", 3, 1_700_000_001.0, 0.0);
        file.histogram("clusters/sizes", 3, 1_700_000_002.0, &[1.0, 5.0, 2.0]);
        file.histogram("clusters/nothing", 3, 1_700_000_002.0, &[]);
        file.image("clusters/largest", 4, 1_700_000_003.0, 7, 5, vec![1, 2, 3]);
        file.text("run/spec", 0, 1_700_000_004.0, "# k = 10");
        let events = decoded(file);
        assert_eq!(events.len(), 5);
        assert_eq!((events[0].wall_time, events[0].file_version.as_deref()), (1_700_000_000.5, Some("brain.Event:2")));
        assert_eq!((events[4].wall_time, events[3].step), (1_700_000_004.0, 4));
        let values: Vec<Value> = events.into_iter().skip(1).flat_map(|event| event.summary.unwrap().values).collect();
        let tags: Vec<&str> = values.iter().map(|value| value.tag.as_str()).collect();
        assert_eq!(tags, ["loss/train", "clusters/sizes", "clusters/largest", "run/spec"]);
        // A zero is a value, not the absence of one.
        assert_eq!(values[0].simple_value, Some(0.0));
        assert_eq!(values[1].histo.as_ref().unwrap().bucket.iter().sum::<f64>(), 3.0);
        let image = values[2].image.as_ref().unwrap();
        assert_eq!((image.width, image.height, image.encoded.as_slice()), (7, 5, [1, 2, 3].as_slice()));
        assert_eq!(values[3].tensor.as_ref().unwrap().strings, [b"# k = 10".to_vec()]);
        assert_eq!(values[3].metadata.as_ref().unwrap().plugin.as_ref().unwrap().name, "text");
    }

    /// The bytes of a scalar as protobuf's own library writes them, which tells a wrong field number from a right one.
    #[test]
    fn a_scalar_has_the_bytes_of_protobuf() {
        let mut file = EventFile::new(0.0);
        file.scalar("a", 1, 2.0, 0.5);
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0, 0x40, // wall_time
            0x10, 1, // step
            0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0, 0x3f, // summary, value, tag, simple_value
        ];
        assert_eq!(records::read(&file.finish())[1], expected);
    }

    #[test]
    fn names_are_in_the_order_of_time() {
        assert_eq!(EventFile::name(1_700_000_000.9), "events.out.tfevents.1700000000.deepcluster");
        assert!(EventFile::name(999_999_999.0) < EventFile::name(1_000_000_000.0));
    }
}
