// Columns of a matrix, each with mean 0 and deviation 1, and their means: an algorithm for Sandbox("native").
// It decides the types and shapes of its two outputs. See normalize.py.
#include <cmath>
#include <exception>
#include <vector>

#include "tr_algorithm.h"

TR_EXPORT int tr_run(const tr_tensor *in, size_t n, tr_tensor *out, size_t m, char *error, size_t error_nbytes) try {
    if (n != 1 || m != 2 || in[0].dtype != TR_FLOAT32 || in[0].ndim != 2)
        return tr_fail(error, error_nbytes, "one float32 matrix, please, and two outputs");
    const auto *x = static_cast<const float *>(in[0].data);
    const int64_t rows = in[0].shape[0], columns = in[0].shape[1];
    auto *y = static_cast<float *>(tr_make(&out[0], TR_FLOAT32, 2, in[0].shape));
    auto *means = static_cast<double *>(tr_make(&out[1], TR_FLOAT64, 1, &columns));
    if (!y || !means) return tr_fail(error, error_nbytes, "no room for the results");
    std::vector<double> squares(columns);  // memory of its own counts for the limit on memory
    for (int64_t j = 0; j < columns; j++) means[j] = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) means[j] += x[i * columns + j] / static_cast<double>(rows);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) squares[j] += std::pow(x[i * columns + j] - means[j], 2);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const double deviation = std::sqrt(squares[j] / static_cast<double>(rows));
            y[i * columns + j] = static_cast<float>((x[i * columns + j] - means[j]) / (deviation > 0 ? deviation : 1));
        }
    return 0;
} catch (const std::exception &problem) {
    return tr_fail(error, error_nbytes, problem.what());
}
