// Kernels for the work between the graphs.
//
// kernels.py compiles this file by NVRTC for the GPU at hand, without contraction (--fmad=false),
// so that sums round as they do on the host. No headers are needed. Offsets are 64 bits wide.

namespace rvos {

// Weighted sums along one axis (rvos_deploy/graph_io/resampling.py): position p is the sum of
// `count[p]` numbers from `first[p]` on.
template <typename Weight>
struct AxisWeights {
  const int* first;
  const int* count;
  const Weight* weights;  // [size, most]
  int most;

  __device__ const Weight* weights_of(int position) const {
    return weights + static_cast<long long>(position) * most;
  }
};

// Resizes one row at one column as Pillow does: the sum is float64, the result float32.
__device__ inline float across(const float* row, const AxisWeights<double>& columns, int x) {
  const int first = columns.first[x], count = columns.count[x];
  const double* weights = columns.weights_of(x);
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(row[first + i]) * weights[i];
  return static_cast<float>(sum);
}

// Tells whether a pixel of the displayed mask is foreground. NaN is background.
__device__ inline bool is_foreground(const float* logits, int stride, const AxisWeights<double>& rows,
                                     const AxisWeights<double>& columns, int y, int x) {
  const int first = rows.first[y], count = rows.count[y];
  const double* weights = rows.weights_of(y);
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    const float* row = logits + static_cast<long long>(first + i) * stride;
    sum += static_cast<double>(across(row, columns, x)) * weights[i];
  }
  return static_cast<float>(sum) > 0.0f;
}

// Sums of bytes in Pillow's fixed point: weights are multiples of 2^-22 (resampling.FIXED_BITS),
// and a sum starts at one half, so that it rounds to nearest.
constexpr int kFixedBits = 22;
constexpr int kHalf = 1 << (kFixedBits - 1);

__device__ inline int rounded(int sum) { return min(sum >> kFixedBits, 255); }

// Computes the three channels of one pixel of the resized frame. Every row is rounded to bytes
// before the rows are summed, as Pillow does.
__device__ inline void resized_pixel(const unsigned char* frame, int width, const AxisWeights<int>& rows,
                                     const AxisWeights<int>& columns, int y, int x,
                                     unsigned char* output) {
  const int top = rows.first[y], height = rows.count[y];
  const int left = columns.first[x], count = columns.count[x];
  const int* down = rows.weights_of(y);
  const int* across = columns.weights_of(x);
  int red = kHalf, green = kHalf, blue = kHalf;
  for (int i = 0; i < height; ++i) {
    const unsigned char* pixel = frame + (static_cast<long long>(top + i) * width + left) * 3;
    int r = kHalf, g = kHalf, b = kHalf;
    for (int j = 0; j < count; ++j, pixel += 3) {
      r += pixel[0] * across[j];
      g += pixel[1] * across[j];
      b += pixel[2] * across[j];
    }
    red += rounded(r) * down[i];
    green += rounded(g) * down[i];
    blue += rounded(b) * down[i];
  }
  output[0] = static_cast<unsigned char>(rounded(red));
  output[1] = static_cast<unsigned char>(rounded(green));
  output[2] = static_cast<unsigned char>(rounded(blue));
}

// Concatenates blocks of equal size from a list of addresses; address 0 gives zeros.
template <typename Word>
__device__ inline void copy_blocks(const unsigned long long* addresses, long long words,
                                    long long total, Word* output) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;
  const Word* block = reinterpret_cast<const Word*>(addresses[index / words]);
  output[index] = block == nullptr ? Word() : block[index % words];
}

}  // namespace rvos

#define RVOS_MASK_PARAMETERS                                                                     \
  const float *logits, int masks, int map_height, int map_width, const int *row_first,           \
      const int *row_count, const double *row_weights, int row_most, const int *column_first,    \
      const int *column_count, const double *column_weights, int column_most, int height,        \
      int width, unsigned char *output

// Upsamples masks and packs them to bits: logits [masks,map_height,map_width] ->
// [masks,height,ceil(width/8)]. The leftmost pixel is the highest bit, as in numpy.packbits. One
// thread writes one byte.
extern "C" __global__ void rvos_pack_masks(RVOS_MASK_PARAMETERS) {
  const int row_bytes = (width + 7) / 8;
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(masks) * height * row_bytes) return;
  const int left = static_cast<int>(index % row_bytes) * 8;
  const int y = static_cast<int>(index / row_bytes % height);
  const float* map = logits + index / row_bytes / height * map_height * map_width;
  const rvos::AxisWeights<double> rows = {row_first, row_count, row_weights, row_most};
  const rvos::AxisWeights<double> columns = {column_first, column_count, column_weights, column_most};
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) {
    const bool inside = left + i < width;
    const bool set = inside && rvos::is_foreground(map, map_width, rows, columns, y, left + i);
    bits = bits << 1 | (set ? 1u : 0u);
  }
  output[index] = static_cast<unsigned char>(bits);
}

// Upsamples masks to one byte a pixel, 0 or 1: [masks,height,width]. One thread writes one pixel.
extern "C" __global__ void rvos_upsample_masks(RVOS_MASK_PARAMETERS) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(masks) * height * width) return;
  const int x = static_cast<int>(index % width), y = static_cast<int>(index / width % height);
  const float* map = logits + index / width / height * map_height * map_width;
  const rvos::AxisWeights<double> rows = {row_first, row_count, row_weights, row_most};
  const rvos::AxisWeights<double> columns = {column_first, column_count, column_weights, column_most};
  output[index] = rvos::is_foreground(map, map_width, rows, columns, y, x) ? 1 : 0;
}

// Flags the rows of logits [rows,width] that hold NaN or plus infinity: 1, else 0. One thread
// checks one row.
extern "C" __global__ void rvos_flag_rows(const float* logits, int rows, int width,
                                          unsigned char* output) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= rows) return;
  const float* row = logits + index * width;
  bool sound = true;
  // The bound is the largest float32. NaN fails the comparison too.
  for (int x = 0; x < width; ++x) sound = sound && row[x] <= 3.402823466e+38f;
  output[index] = sound ? 0 : 1;
}

#define RVOS_PREPROCESS_PARAMETERS                                                                      \
  const unsigned char *frame, int frame_width, const int *row_first, const int *row_count,       \
      const int *row_weights, int row_most, const int *column_first, const int *column_count,    \
      const int *column_weights, int column_most, int content_height, int content_width,         \
      int height, int width, int padding, unsigned char *output

// Resizes a frame uint8 [H,frame_width,3] to its content's size, and pads it right and bottom to
// [height,width,3] by one colour, 0xRRGGBB. One thread writes one pixel.
extern "C" __global__ void rvos_preprocess(RVOS_PREPROCESS_PARAMETERS) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(height) * width) return;
  const int x = static_cast<int>(index % width), y = static_cast<int>(index / width);
  unsigned char* pixel = output + index * 3;
  if (y < content_height && x < content_width) {
    const rvos::AxisWeights<int> rows = {row_first, row_count, row_weights, row_most};
    const rvos::AxisWeights<int> columns = {column_first, column_count, column_weights, column_most};
    rvos::resized_pixel(frame, frame_width, rows, columns, y, x, pixel);
    return;
  }
  for (int channel = 0; channel < 3; ++channel) {
    pixel[channel] = static_cast<unsigned char>(padding >> (16 - 8 * channel) & 255);
  }
}

#define RVOS_COPY_PARAMETERS(Word) \
  const unsigned long long *addresses, long long words, long long total, Word *output

// Concatenates blocks of `words` words from `addresses`, `total` words in all. One thread copies
// one word.
extern "C" __global__ void rvos_copy_vectors(RVOS_COPY_PARAMETERS(uint4)) {
  rvos::copy_blocks<uint4>(addresses, words, total, output);
}

// The same for sizes or addresses that are not multiples of 16 bytes.
extern "C" __global__ void rvos_copy_bytes(RVOS_COPY_PARAMETERS(unsigned char)) {
  rvos::copy_blocks<unsigned char>(addresses, words, total, output);
}
