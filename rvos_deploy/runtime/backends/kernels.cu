// What the stream does to tensors between the graphs, where they lie.
//
// Compiled by NVRTC when a GPU is there (cuda_kernels.py), without contraction (--fmad=false): sums
// then round as they do on the host. No headers are needed. Offsets are 64 bits wide.

namespace rvos {

// Weighted sums along one axis (rvos_deploy/runtime/resampling.py): position p is the sum of
// `count[p]` numbers from `first[p]` on.
struct Taps {
  const int* first;
  const int* count;
  const double* weights;  // [size, most]
  int most;
};

// One column of one row, as Pillow computes it: summed in float64, kept in float32.
__device__ inline float across(const float* row, const Taps& columns, int x) {
  const int first = columns.first[x], count = columns.count[x];
  const double* weights = columns.weights + static_cast<long long>(x) * columns.most;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(row[first + i]) * weights[i];
  return static_cast<float>(sum);
}

// Whether a pixel of the displayed mask is foreground. What is not a number is not.
__device__ inline bool is_foreground(const float* logits, int stride, const Taps& rows,
                                     const Taps& columns, int y, int x) {
  const int first = rows.first[y], count = rows.count[y];
  const double* weights = rows.weights + static_cast<long long>(y) * rows.most;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    const float* row = logits + static_cast<long long>(first + i) * stride;
    sum += static_cast<double>(across(row, columns, x)) * weights[i];
  }
  return static_cast<float>(sum) > 0.0f;
}

// Pieces of equal size that lie anywhere, one behind the other; an address of 0 gives zeros.
template <typename Word>
__device__ inline void stack_pieces(const unsigned long long* pieces, long long words,
                                    long long total, Word* output) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;
  const Word* piece = reinterpret_cast<const Word*>(pieces[index / words]);
  output[index] = piece == nullptr ? Word() : piece[index % words];
}

}  // namespace rvos

#define RVOS_MASK_PARAMETERS                                                                     \
  const float *logits, int masks, int map_height, int map_width, const int *row_first,           \
      const int *row_count, const double *row_weights, int row_most, const int *column_first,    \
      const int *column_count, const double *column_weights, int column_most, int height,        \
      int width, unsigned char *output

// Masks packed to bits: logits [masks,map_height,map_width] -> [masks,height,ceil(width/8)], the
// leftmost pixel in the highest bit, as numpy.packbits has it. One thread a byte.
extern "C" __global__ void rvos_pack_masks(RVOS_MASK_PARAMETERS) {
  const int row_bytes = (width + 7) / 8;
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(masks) * height * row_bytes) return;
  const int left = static_cast<int>(index % row_bytes) * 8;
  const int y = static_cast<int>(index / row_bytes % height);
  const float* map = logits + index / row_bytes / height * map_height * map_width;
  const rvos::Taps rows = {row_first, row_count, row_weights, row_most};
  const rvos::Taps columns = {column_first, column_count, column_weights, column_most};
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) {
    const bool inside = left + i < width;
    const bool set = inside && rvos::is_foreground(map, map_width, rows, columns, y, left + i);
    bits = bits << 1 | (set ? 1u : 0u);
  }
  output[index] = static_cast<unsigned char>(bits);
}

// The same with a byte a pixel, 0 or 1: [masks,height,width]. One thread a pixel.
extern "C" __global__ void rvos_show_masks(RVOS_MASK_PARAMETERS) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(masks) * height * width) return;
  const int x = static_cast<int>(index % width), y = static_cast<int>(index / width % height);
  const float* map = logits + index / width / height * map_height * map_width;
  const rvos::Taps rows = {row_first, row_count, row_weights, row_most};
  const rvos::Taps columns = {column_first, column_count, column_weights, column_most};
  output[index] = rvos::is_foreground(map, map_width, rows, columns, y, x) ? 1 : 0;
}

#define RVOS_STACK_PARAMETERS(Word) \
  const unsigned long long *pieces, long long words, long long total, Word *output

// `pieces` are addresses, each of `words` words; `total` words are written. One thread a word.
extern "C" __global__ void rvos_stack_vectors(RVOS_STACK_PARAMETERS(uint4)) {
  rvos::stack_pieces<uint4>(pieces, words, total, output);
}

// For sizes or addresses that are not multiples of 16 bytes.
extern "C" __global__ void rvos_stack_bytes(RVOS_STACK_PARAMETERS(unsigned char)) {
  rvos::stack_pieces<unsigned char>(pieces, words, total, output);
}
