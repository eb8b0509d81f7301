//! A stream of images and the stream of their answers. They go side by side: while some images wait for answers, others come
//! in, up to a window.

use crate::inference::batches::shutting_down;
use crate::inference::desk::Desk;
use crate::inference::models::Model;
use crate::inference::{Kind, Question};
use deepcluster_proto::v1::ImageAnswer;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

/// Images of a stream that wait for answers at a time: enough for a batch or two, and no more, since their answers stay in memory
/// until the client reads them.
const WINDOW: usize = 256;

/// Follows a stream to its end: that of the client, its failure, or ours. `wrap` makes answers of an epoch.
pub(crate) async fn follow<Q, M>(
    desk: &Desk,
    questions: Streaming<Q>,
    answers: mpsc::Sender<Result<M, Status>>,
    wrap: fn(u32, Vec<ImageAnswer>) -> M,
) where
    Question: From<Q>,
{
    let outcome = tokio::select! {
        outcome = both_ways(desk, questions, &answers, wrap) => outcome,
        () = answers.closed() => return,
        () = desk.shutdown.cancelled() => Err(shutting_down()),
    };
    if let Err(status) = outcome {
        let _ = answers.send(Err(status)).await;
    }
}

async fn both_ways<Q, M>(
    desk: &Desk,
    mut questions: Streaming<Q>,
    answers: &mpsc::Sender<Result<M, Status>>,
    wrap: fn(u32, Vec<ImageAnswer>) -> M,
) -> Result<(), Status>
where
    Question: From<Q>,
{
    let window = Semaphore::new(WINDOW);
    // Known once the first message was read, before any answer.
    let epoch: OnceLock<u32> = OnceLock::new();
    let (answer, mut answered) = mpsc::unbounded_channel();
    let questions = async {
        // At the end of the questions, only images can send.
        let answer = answer;
        let mut chosen: Option<(Arc<Model>, Kind)> = None;
        let mut n_read = 0;
        while let Some(message) = questions.message().await? {
            let question = Question::from(message);
            let (model, kind) = match chosen.clone() {
                Some(chosen) => chosen,
                None => (desk.model(&question).await?, question.kind),
            };
            let _ = epoch.set(model.epoch.0);
            chosen = Some((Arc::clone(&model), kind));
            desk.check(&question.images)?;
            let n = question.images.len();
            let permit = window.acquire_many(n as u32).await.map_err(|error| Status::internal(error.to_string()))?;
            // Given back by the answers.
            permit.forget();
            let room = desk.wait_for_room(&question.images).await?;
            desk.submit(&model, kind, question.images, n_read, room, &answer);
            n_read += n;
        }
        Ok::<(), Status>(())
    };
    let most = desk.runs.limits.images;
    let answers = async {
        while let Some((_, first)) = answered.recv().await {
            let mut images = vec![first?];
            while images.len() < most
                && let Ok((_, next)) = answered.try_recv()
            {
                images.push(next?);
            }
            window.add_permits(images.len());
            let message = wrap(epoch.get().copied().unwrap_or_default(), images);
            if answers.send(Ok(message)).await.is_err() {
                break;
            }
        }
        Ok::<(), Status>(())
    };
    tokio::try_join!(questions, answers).map(|((), ())| ())
}
