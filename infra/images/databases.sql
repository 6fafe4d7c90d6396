-- Beside Airflow's, which the image makes: Feast's registry.
CREATE DATABASE feast;
