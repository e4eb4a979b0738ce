//! How fast messages are delivered, as arguments.

use super::values;
use restante_protocol::shaper::{RatePatch, RatesPatch};

/// What is left out keeps its value; 0 takes it away.
#[derive(clap::Args, Clone)]
pub(super) struct RateArgs {
    /// Messages a second that are guaranteed, as in 50/s; and the most there are, unless --ceil says more
    #[arg(long, allow_hyphen_values = true, value_name = "N/s", value_parser = values::per_second)]
    rate: Option<u64>,
    /// Most messages a second; above the guaranteed ones as far as others leave some
    #[arg(long, allow_hyphen_values = true, value_name = "N/s", value_parser = values::per_second)]
    ceil: Option<u64>,
    /// Messages that may be saved up and leave at once; 0: a tenth of a second's
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    burst: Option<u64>,
    /// Bytes a second that are guaranteed, as in 1MiB/s; and the most there are, unless --ceil-bytes says more
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE/s", value_parser = values::bytes_per_second)]
    rate_bytes: Option<u64>,
    /// Most bytes a second
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE/s", value_parser = values::bytes_per_second)]
    ceil_bytes: Option<u64>,
    /// Bytes that may be saved up and leave at once; 0: a tenth of a second's
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = values::bytes)]
    burst_bytes: Option<u64>,
}

impl From<RateArgs> for RatesPatch {
    fn from(args: RateArgs) -> RatesPatch {
        let RateArgs { rate, ceil, burst, rate_bytes, ceil_bytes, burst_bytes } = args;
        RatesPatch {
            messages: RatePatch { rate, ceil, burst },
            bytes: RatePatch { rate: rate_bytes, ceil: ceil_bytes, burst: burst_bytes },
        }
    }
}
