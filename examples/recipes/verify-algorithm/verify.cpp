// Compares two algorithms with their reference in Python. Exit code 0: both are right.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>

#include <tr_mmap/tr_mmap.hpp>

// The algorithms under test: softmax of one row. The first one overflows for large numbers.
void naive_softmax(const float* x, float* result, int columns, float shift = 0) {
    float sum = 0;
    for (int i = 0; i < columns; ++i) sum += result[i] = std::exp(x[i] - shift);
    for (int i = 0; i < columns; ++i) result[i] /= sum;
}

void stable_softmax(const float* x, float* result, int columns) {
    naive_softmax(x, result, columns, *std::max_element(x, x + columns));
}

int main(int argc, char** argv) {
    try {
        tr::PythonSession session(argc > 1 ? argv[1] : "reference.py", "verify");
        session.start();
        if (!session.wait_until_ready(60'000)) throw std::runtime_error("no worker");

        const int rows = 1000, columns = 512;
        std::mt19937 random(0);
        bool is_right = true;
        for (const float scale : {1.0f, 50.0f}) {
            std::normal_distribution<float> normal(0, scale);
            // Loans: the input and the results are written where the worker reads them.
            tr::Tensor x = session.empty<float>(tr::Shape(rows, columns));
            tr::Tensor naive = session.empty<float>(x.shape());
            tr::Tensor stable = session.empty<float>(x.shape());
            float* const input = x.data<float>();
            std::generate_n(input, rows * columns, [&] { return normal(random); });
            for (int at = 0; at < rows * columns; at += columns) {
                naive_softmax(input + at, naive.data<float>() + at, columns);
                stable_softmax(input + at, stable.data<float>() + at, columns);
            }
            session.send_tensor(x, "x");
            session.send_tensor(naive, "naive");
            session.send_tensor(stable, "stable");
            for (const std::string name : {"naive", "stable"}) {
                const std::string request = "compare x " + name + " softmax 1e-4 1e-7";
                const std::string report = session.fetch_response(request, 60'000);
                std::cout << name << ", scale " << scale << ": " << report << std::endl;
                is_right = is_right && report.rfind("ok", 0) == 0;
            }
        }
        return is_right ? 0 : 1;
    } catch (const std::exception& error) {  // tr::TRException is one
        std::cerr << error.what() << std::endl;
        return 2;
    }
}
